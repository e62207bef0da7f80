"""To be written."""

READS = ("kl",)


def table(results, options):
    raise NotImplementedError


def draw(frame, options, style):
    raise NotImplementedError
