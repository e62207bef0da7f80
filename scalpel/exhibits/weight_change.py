"""To be written."""

READS = ("weight_change",)


def table(results, options):
    raise NotImplementedError


def draw(frame, options, style):
    raise NotImplementedError
