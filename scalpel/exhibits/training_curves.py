"""To be written."""

READS = ("train", "given")


def table(results, options):
    raise NotImplementedError


def draw(frame, options, style):
    raise NotImplementedError


from scalpel.exhibits.options import ExhibitOptions


class Options(ExhibitOptions):
    columns: dict[str, str]
