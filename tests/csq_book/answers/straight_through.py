"""Typical wrong answers to the puzzles of the chapter on the straight-through estimator: at least three each."""

WRONG = {
    "clipped_slope": [
        lambda x, grad, limit: grad.clamp(-limit, limit),  # clips the gradient in place of the input
        lambda x, grad, limit: grad * (x <= limit),  # only one end
        lambda x, grad, limit: grad * (x.abs() < limit),  # without the ends themselves
        lambda x, grad, limit: (x.abs() <= limit).float(),  # forgets what arrives
        lambda x, grad, limit: grad * (x.round().abs() <= limit),  # looks at the code
        lambda x, grad, limit: 0 * grad,  # the truth
    ],
    "straight_round": [
        lambda x, limit: x.round().clamp(-limit, limit),  # the gradient of rounding itself
        lambda x, limit: x + (x.round().clamp(-limit, limit) - x).detach(),  # a slope of 1 everywhere
        lambda x, limit: (x + (x.round() - x).detach()).clamp(-limit, limit),  # cuts the code, not the input
        lambda x, limit: x.clamp(-limit, limit),  # the backward pass used forward
        lambda x, limit: x.detach().round().clamp(-limit, limit),  # no gradient at all
        lambda x, limit: x.clamp(-limit, limit) + (x.round() - x).detach(),  # the wrong value beyond the limit
    ],
}
