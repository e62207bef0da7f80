"""A figure of the user's own: relative weight change, cubed, of each run's last checkpoint."""

READS = ("weight_change",)


def table(results, options):
    from scalpel.exhibits.results import final

    frame = final(results.weight_change())
    frame = frame[frame["reference"] == "base"]
    return frame.assign(cube=frame["relative"] ** 3).groupby(["run", "seed"], as_index=False)["cube"].mean()


def draw(frame, options, style):
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots()
    sns.barplot(frame, x="run", y="cube", ax=axes)
    return figure
