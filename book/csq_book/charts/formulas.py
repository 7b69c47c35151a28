"""Charts of the method's formulas, each as a Vega-Lite specification; tests hold them against the library."""

from __future__ import annotations

import json
from typing import Any

import altair as alt

from csq_mini.gates import LOGIT
from csq_mini.plots import BLUE, GREEN, ORANGE

from .live import Live, axis, even, sigmoid, slider

PROGRESS = slider("t", "Progress t (\u03b2 = 200\u1d57)", 0, 1, 0.01, 0.3)
BETA = {"name": "beta", "expr": "pow(200, t)"}


def staircase() -> Live:
    """Uniform quantizer with ``bits`` planes and range s: each weight against its rounded value.

    As in :func:`csq_mini.bits.round_to_grid`: step = s / (2^k - 1), codes clamped to +-(2^k - 1).
    """
    data = alt.sequence(-2, 2.0001, 0.01, as_="w")
    code = f"clamp({even('datum.w / step')}, -levels, levels)"
    x = alt.X("w:Q", axis=axis("weight w"), scale=alt.Scale(domain=[-2, 2], nice=False))
    y = alt.Y("quantized:Q", axis=axis("rounded weight"), scale=alt.Scale(domain=[-2, 2], nice=False))
    line = alt.Chart().mark_line(color=BLUE, strokeWidth=2.5, interpolate="step").encode(x=x, y=y)
    same = alt.Chart().mark_line(color=ORANGE, strokeDash=[5, 4], strokeWidth=1.5).encode(x=x, y=alt.Y("w:Q"))
    chart = alt.layer(same, line, data=data).transform_calculate(code=code).transform_calculate(
        quantized="step * datum.code", error="datum.quantized - datum.w"
    ).properties(height=280)  # fmt: skip
    params = [slider("bits", "Bits k", 1, 8, 1, 2), slider("range", "Range s", 0.25, 2, 0.05, 1),
              {"name": "levels", "expr": "pow(2, bits) - 1"}, {"name": "step", "expr": "range / levels"}]  # fmt: skip
    words = (
        "'A step is ' + format(step, '.4f') + ', and there are ' + (2 * levels + 1) + ' values. A weight within '"
        " + '\u00b1' + format(range, '.2f') + ' moves by at most half a step, ' + format(step / 2, '.4f') + '.'"
    )
    return Live("staircase", chart, params, words, """A staircase around the dashed diagonal: each weight against its
        rounded value. Two sliders set the number of bits and the range; more bits make finer steps, and beyond the
        range the staircase is flat.""")


def one_weight() -> Live:
    """The bits of one weight, for s = 1 and N = 8: planes of both signs, integer and error.

    As in :func:`csq_mini.bits.round_to_grid` with the ``kept`` most significant planes, and
    :func:`csq_mini.bits.integer_to_planes`.
    """
    data = alt.sequence(0, 8, 1, as_="b")
    bit = "floor(abs(code) / pow(2, datum.b)) % 2"
    bare: dict[str, Any] = {"domain": False, "ticks": False, "labelAngle": 0}
    gap = alt.Scale(paddingInner=0.08)
    x = alt.X("worth:O", sort="descending", axis=alt.Axis(title="worth of the plane", **bare), scale=gap)
    y = alt.Y("sign:N", sort=["P", "N"], axis=alt.Axis(title=None, **bare), scale=gap)
    full = "datum.bit == 1 && datum.sign == 'P'"
    color: Any = [{"test": full, "value": BLUE}, {"test": "datum.bit == 1", "value": ORANGE}]
    opacity: Any = [{"test": "datum.bit == 1", "value": 1}, {"test": "datum.closed", "value": 0.06}]
    white: Any = {"test": "datum.bit == 1", "value": "white"}
    squares = alt.Chart().mark_rect(cornerRadius=4).encode(
        x=x, y=y, color=alt.ColorValue("currentColor", condition=color),
        opacity=alt.OpacityValue(0.2, condition=opacity))  # fmt: skip
    digits = alt.Chart().mark_text(fontSize=16).encode(
        x=x, y=y, text="shown:N", color=alt.ColorValue("currentColor", condition=white))  # fmt: skip
    chart = (
        alt.layer(squares, digits, data=data)
        .transform_calculate(worth="pow(2, datum.b)", sign="['P', 'N']", closed="datum.b < 8 - kept")
        .transform_flatten(["sign"])
        .transform_calculate(bit=f"(datum.sign == 'P' ? code > 0 : code < 0) ? {bit} : 0")
        .transform_calculate(shown="datum.closed ? '' : datum.bit")
        .properties(height=130)
    )
    params = [
        slider("w", "Weight w", -1, 1, 0.005, 0.35), slider("kept", "Planes kept", 1, 8, 1, 8),
        {"name": "unit", "expr": "pow(2, 8 - kept)"}, {"name": "most", "expr": "pow(2, kept) - 1"},
        {"name": "step", "expr": "1 / 255"}, {"name": "value", "expr": "step * code"},
        {"name": "code", "expr": f"unit * clamp({even('w / (step * unit)')}, -most, most)"},
    ]  # fmt: skip
    words = ("'w = ' + format(w, '.3f') + ' becomes the integer ' + format(code, 'd') + ', which stands for ' + "
             "format(value, '.4f') + ': an error of ' + format(value - w, '+.4f') + '.'")  # fmt: skip
    return Live("one-weight", chart, params, words, """Two rows of eight squares, the bits of the positive part P and
        of the negative part N of one weight, worth 128 down to 1. Squares with a 1 are coloured. One slider moves the
        weight, the other takes away the planes of least worth.""")


def straight_through() -> Live:
    """An activation of ``bits`` with clip alpha: rounded forward, a straight line backward.

    As in :class:`csq_mini.activations.PACT` and its gradient; the true slope is zero wherever there is one.
    """
    data = alt.sequence(-1, 4.0001, 0.02, as_="x")
    x = alt.X("x:Q", axis=axis("input x"), scale=alt.Scale(domain=[-1, 4], nice=False))
    scale = alt.Scale(domain=[-0.12, 3.2], nice=False)  # a line at zero stands off the axis
    names = ["forward, y", "backward, the slope it takes", "true slope"]
    chart = (
        alt.layer(
            alt.Chart().mark_line(strokeWidth=2.5, interpolate="step").encode(
                x=x, y=alt.Y("value:Q", axis=axis("value, slope"), scale=scale),
                color=alt.Color("line:N", scale=alt.Scale(domain=names, range=[BLUE, ORANGE, GREEN]), legend=alt.Legend(
                    columns=1, symbolType="stroke", labelLimit=300)),
                strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=[[1, 0], [7, 4], [2, 3]]))),
            data=data,
        )
        .transform_calculate(code=even("clamp(datum.x / step, 0, levels)"))
        .transform_calculate(slope="datum.x > 0 && datum.x < alpha ? 1 : 0")
        .transform_calculate(forward="step * datum.code")
        .transform_calculate(line=json.dumps(names), value="[datum.forward, datum.slope, 0]")
        .transform_flatten(["line", "value"])
        .properties(height=240)
    )  # fmt: skip
    params = [slider("bits", "Bits k", 1, 4, 1, 2), slider("alpha", "Clip \u03b1", 0.5, 3, 0.1, 2),
              {"name": "levels", "expr": "pow(2, bits) - 1"}, {"name": "step", "expr": "alpha / levels"}]  # fmt: skip
    words = (
        "'Forward there are ' + pow(2, bits) + ' values, ' + format(step, '.3f') + ' apart. Backward the slope is 1 '"
        " + 'between 0 and ' + format(alpha, '.1f') + ', as if nothing had been rounded; in truth it is 0.'"
    )
    return Live("straight-through", chart, params, words, """A clipped staircase, the forward pass; a dashed line that
        is 1 between zero and the clip and 0 elsewhere, the slope taken backward; and a dotted line at zero, the true
        slope. Two sliders set the bits and the clip.""")


def gate() -> Live:
    """The gate sigmoid(beta x) and its slope, beta = 200^t as in :func:`csq_mini.temperature`."""
    data = alt.sequence(-2, 2.0001, 0.01, as_="x")
    x = alt.X("x:Q", axis=axis("logit x"), scale=alt.Scale(domain=[-2, 2], nice=False))
    left = alt.Y("gate:Q", axis=axis("gate f(x)", titleColor=BLUE), scale=alt.Scale(domain=[0, 1]))
    powers = axis("slope f'(x)", titleColor=ORANGE, grid=False, values=[0.001, 0.01, 0.1, 1, 10, 100], format="~g")
    right = alt.Y("drawn:Q", axis=powers, scale=alt.Scale(type="log", domain=[0.001, 100]))
    start = alt.Chart(alt.Data(values=[{"x": -LOGIT}, {"x": LOGIT}])).mark_rule(strokeDash=[2, 3], opacity=0.6)
    chart = (
        alt.layer(
            alt.layer(start.encode(x=x), alt.Chart().mark_line(color=BLUE, strokeWidth=2.5).encode(x=x, y=left)),
            alt.Chart().mark_line(color=ORANGE, strokeWidth=2.5, strokeDash=[7, 4]).encode(x=x, y=right),
            data=data,
        )
        .transform_calculate(gate=sigmoid("beta * datum.x"))
        .transform_calculate(slope="beta * datum.gate * (1 - datum.gate)")
        .transform_calculate(drawn="datum.slope < 0.001 ? null : datum.slope")
        .resolve_scale(y="independent")
        .properties(height=260)
    )
    params = [PROGRESS, BETA, {"name": "opening", "expr": f"{sigmoid(f'beta * {LOGIT}')}"}]
    words = ("'\u03b2 = ' + format(beta, '.1f') + ': the steepest slope is ' + format(beta / 4, '.2f') + ', at 0. "
             "At x = 0.5, where an open bit starts, the gate is ' + format(opening, '.3f') + ' and its slope ' + "
             "format(beta * opening * (1 - opening), '.3g') + '.'")  # fmt: skip
    return Live("gate", chart, params, words, """The gate rises from 0 to 1 around logit 0; its slope, dashed, on a
        logarithmic axis, is a peak at 0. A slider raises the temperature: the gate becomes a step, and the slope a
        needle that vanishes at the logits plus and minus one half, which two dotted lines mark.""")


def pull() -> Live:
    """The pull of the budget's term on one mask logit q, as the present precision B passes the target tau.

    Minus the gradient of :meth:`csq_mini.Budget.penalty` by q, with and without ``growth``:
    -lambda (B - tau) (|W_l| / |W|) beta f(q) (1 - f(q)).
    """
    data = alt.sequence(0, 8.0001, 0.05, as_="B")
    x = alt.X("B:Q", axis=axis("present bits a weight, B", tickCount=8), scale=alt.Scale(domain=[0, 8], nice=False))
    y = alt.Y("value:Q", axis=axis("pull on the mask logit q"), scale=alt.Scale(zero=True))
    names = ["CSQ: changes its sign", "prunes only"]
    lines = alt.Chart().mark_line(strokeWidth=2.5).encode(
        x=x, y=y, color=alt.Color("line:N", scale=alt.Scale(domain=names, range=[BLUE, ORANGE]), legend=alt.Legend(
            columns=1, symbolType="stroke", labelLimit=300)),
        strokeDash=alt.StrokeDash("line:N", scale=alt.Scale(domain=names, range=[[1, 0], [7, 4]])))  # fmt: skip
    at_target = alt.Chart(alt.Data(values=[{}])).transform_calculate(B="tau").mark_rule(strokeDash=[2, 3]).encode(x=x)
    zero = alt.Chart(alt.Data(values=[{"value": 0}])).mark_rule(opacity=0.5).encode(y=y)
    chart = (
        alt.layer(at_target, zero, lines, data=data)
        .transform_calculate(pull="-strength * (datum.B - tau) * share * slope")
        .transform_calculate(bare="min(datum.pull, 0)")
        .transform_calculate(line=json.dumps(names), value="[datum.pull, datum.bare]")
        .transform_flatten(["line", "value"])
        .properties(height=240)
    )
    params = [
        slider("tau", "Target \u03c4", 1, 6, 0.5, 3), slider("q", "Mask logit q", -1, 1, 0.05, 0.5), PROGRESS, BETA,
        {"name": "strength", "value": 0.2}, {"name": "share", "value": 0.31},
        {"name": "opening", "expr": sigmoid("beta * q")},
        {"name": "slope", "expr": "beta * opening * (1 - opening)"},
    ]  # fmt: skip
    words = (
        "'\u03b2 = ' + format(beta, '.1f') + ': the gate of q is ' + format(opening, '.3f') + '. At B = 8 the pull '"
        " + 'is ' + format(-strength * (8 - tau) * share * slope, '.2~g') + ', at B = ' + tau + ' it is 0, and at '"
        " + 'B = 0 it is ' + format(strength * tau * share * slope, '.2~g') + '.'"
    )
    return Live("pull", chart, params, words, """The pull of the budget's term on a mask logit against the present
        precision: a falling straight line that passes zero at the target, above it closes planes and below it opens
        them. A dashed second line without growth stays at zero below the target. Sliders set target, logit and
        temperature.""")
