"""What CSQ is compared with: other quantizers and other ways to choose a scheme, trained by one loop and judged alike.

A layer of k paper bits has the codes -(2^k - 1) ... 2^k - 1 and one step, whatever the method.
"""
