"""How far an error counted on some examples may be from that on all examples of their kind."""


def wilson_interval(errors, examples, confidence=0.95):
    """Return (lowest, highest) of Wilson's score interval of a share, errors / examples, both 0..1.

    It holds near 0 too, where the interval of the normal distribution has no width. The examples
    are taken for independent draws, and the model as given: how a training with another seed would
    differ is not in it.
    """
    from scipy.stats import binomtest  # a quarter of a second, which only reports need

    interval = binomtest(errors, examples).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
