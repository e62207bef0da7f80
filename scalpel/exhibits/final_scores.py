"""To be written."""

READS = ("evaluate",)


def table(results, options):
    raise NotImplementedError


def draw(frame, options, style):
    raise NotImplementedError
