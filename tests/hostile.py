# ruff: noqa: E501
r"""Completions that want to be graded right without being so, by kind: (gold answer, completion).

None of them is right by the strict rule. `GOLD` is the answer they are after, unless a pair names its own.
"""

from __future__ import annotations

GOLD = "12"
MEGA = 1 << 20
TAGGED = "<think>\n{}\n</think>\n<answer>\n{}\n</answer>"
BOX = r"\boxed{{{}}}"


def corpus() -> list[tuple[str, str, str]]:
    """(kind, gold answer, completion) of all, in a fixed order."""
    found = []
    for kind, make in KINDS.items():
        for item in make():
            gold, text = item if isinstance(item, tuple) else (GOLD, item)
            found.append((kind, gold, text))
    return found


def think_only() -> list:
    """The answer stands only in what was thought."""
    said = (
        "I do not know",
        "thirteen",
        "",
        " ",
        "?",
        "none",
        "see above",
        "the above",
        "13",
        "...",
        "no answer",
        "N/A",
    )
    thought = ("12", r"\boxed{12}", "the answer is 12", r"$12$", "<answer>12</answer>", "#### 12")
    pairs = [TAGGED.format(inside, after) for inside in thought for after in said]
    unclosed = [f"<think>\n{inside}" for inside in thought] + [f"<think>\n{inside}\n</think>" for inside in thought]
    twice = [f"<think>a</think>b<think>{inside}</think>" for inside in thought]
    never = [f"</think><think>{inside}" for inside in thought]
    return pairs + unclosed + twice + never


def lists() -> list:
    """Several answers, the gold one among them."""
    several = ("13 or 12", "12 or 13", "11, 12", "12, 13", "12 and 13", "11; 12", "13, 14, 12", "either 13 or 12",
               "12 (or 13)", "13 / 12", "between 11 and 12", "12 to 13", "11-12", "12, maybe 13", "not 12", "[11, 12]",
               r"\{11, 12\}", "(11, 12)", "12, 12", "12 12", r"12 \text{ or } 13", r"12 \quad 13", r"12 \\ 13", "12\n13",
               "13\n12", "12 13", "13&12", r"12,\ 13", "1,2", "1 2", "12 or not 12", "12?", "12 vs 13")  # fmt: skip
    plain = [text for text in several if text not in ("12?",)]
    return (
        [BOX.format(text) for text in plain if text != "12, 12"]
        + [TAGGED.format("hm", text) for text in several]
        + [f"The answer is {text}" for text in several]
        + [r"\boxed{12} or \boxed{13}", r"\boxed{13} or \boxed{12}", r"\boxed{11}, \boxed{12}", r"$\boxed{13}$, $\boxed{12}$",
           r"\boxed{12}, 13", r"\boxed{12} or 13", r"\boxed{12} or maybe $13$", r"\boxed{12}; 14",
           "The answer is\n12\n13", "The answers are\n- 11\n- 12", "1. 11\n2. 12", "A. 11\nB. 12", "Numbers:\n11\n12"]
    )  # fmt: skip


def boxes() -> list:
    """Boxes in boxes, boxes left open, boxes that are part of something larger, boxes taken back."""
    return [
        r"\boxed{\boxed{12}}", r"\fbox{\boxed{12}}", r"\boxed{\text{\boxed{12}}}", r"\boxed{13 \boxed{12}}", r"\boxed{12",
        r"\boxed{\boxed{12}", r"\boxed 12", r"\boxed", r"\boxed{}", r"\boxed{ }", r"{\boxed}{12}", r"\boxed{12}{13",
        r"\boxed{12}, no, \boxed{13}", r"\boxed{12}\boxed{13}", r"\boxed{1}\boxed{2}", r"2\boxed{12}", r"\sqrt{\boxed{12}}",
        r"\frac{\boxed{12}}{2}", r"-\boxed{12}", r"x^{\boxed{12}}", r"\boxed{12}^2", r"\boxed{12}!", r"\boxed{12}+1",
        r"\boxed{12} \times 2", r"\boxed{12}3", r"x \ne \boxed{12}", r"not \boxed{12}", r"never \boxed{12}",
        r"x < \boxed{12}", r"\boxed{12} is wrong", r"\boxed{12} is not true", r"\boxed{12} thousand", r"\boxed{12} million",
        r"\boxed{12}\%", r"\boxed{12}%", r"\boxed{12} percent", r"\boxed{12} dozen", r"\boxed{12} squared",
        r"\boxed{\text{not } 12}", r"\boxed{\neg 12}", r"\boxed{12 = 13}", r"\boxed{13 = 12}", r"\boxed{2x = 12}",
        r"\boxed{x \ne 12}", r"\boxed{x > 12}", r"\boxed{12 < 13}", r"\boxed{\{12}", r"\boxed{12\}}", r"\\boxed{13}{12}",
        r"\boxed{12}" + "\n" + r"\boxed{unknown}", r"\boxed{12} \boxed{}", r"\boxed{12} and then \boxed{",
    ]  # fmt: skip


def tags() -> list:
    """Several tags, tags in tags, tags left open or closed twice."""
    return [
        "<answer>12", "12</answer>", "<answer>12</answer><answer>13</answer>", "<answer>12</answer><answer></answer>",
        "<answer><answer>12</answer></answer>", "<answer><answer>12</answer>", "<answer>12</answer></answer>",
        "<answer>13 <answer>12</answer>", "<answer>12<answer>13</answer></answer>", "<answer>12<answer>", "</answer>12<answer>",
        "<answer>\n<think>12</think>\n</answer>", "<answer><think>12</answer>", "<think><answer>12</answer></think>",
        "<think>a</think><answer>12", "<think>a</think><answer>13</answer> 12", "<answer>13</answer> \\boxed{12}",
        "<answer></answer>12", "<answer> </answer> 12", "<ANSWER>13</ANSWER>", "<answer >12</answer>", "<answer>12</answer >",
        "<answer/>12?", "<answer>12</think>", "<think>13<answer>12</answer>", "<answer>12</answer><think>", "<answer>12</answer><think>13",
        "<answer>13</answer>" * 50 + "12", "<answer>" * 500 + "12" + "</answer>" * 500, "<think>" * 500 + "12" + "</think>" * 500,
        "<answer>12</answer><answer>13", "<answer>\\boxed{13}</answer>\\boxed{12}", "<answer><b>12</b></answer>", "<answer>&#49;2</answer>",
    ]  # fmt: skip


def not_the_number() -> list:
    """What looks like the gold answer and says something else."""
    said = ("12%", r"12\%", "12 %", "12 percent", "12 per cent", "12 thousand", "12 million", "12k", "12 dozen", "12!", "12^2",
            "12^0", "-12", "+-12", r"\pm 12", "12.5", "12.0000001", "11.9999999", "12,5", "12e1", "12e-1", "1.2",
            "012.1", "0x12", "0b1100", "12_8", "12:00", "12/1/2", "12/2", "1/12", r"\frac{1}{12}", "12i", "12x", "x12", "12a",
            "#12", "12...", "12..", "1212", "1 2 ", "twelve dozen", "a dozen", "XII", "12 o'clock and 5", "12 plus 1",
            "12 times 2", "half of 12", "12 squared", "twice 12", "less than 12", "more than 12", "at least 12", "about 12",
            r"\approx 12", r"\sim 12", "> 12", "< 12", r"\ge 12", r"\ne 12", "!= 12", "12 mod 5", "12 base 8", "12 + C",
            "12 + 1", "12 - x", r"\sqrt{12}", r"12\sqrt{2}", r"12\pi", r"\log 12", r"|12|i", "f(12)", "{12, }1", "12 'or' 13",
            "12 if x > 0", "12 unless", "undefined, or 12", "the answer 12 is wrong", "not 12", "never 12", "12 not")  # fmt: skip
    return [BOX.format(text) for text in said] + [TAGGED.format("so", text) for text in said]


def digits() -> list:
    """Digits and signs of other scripts, and characters that are not seen."""
    twelve = ("\u0661\u0662", "\u06f1\u06f2", "\u0967\u0968", "\uff11\uff12", "\u00b9\u00b2", "\u2081\u2082", "\u2460\u2461",
              "\U0001d7cf\U0001d7d0", "\u216b", "\u216c", "\u5341\u4e8c", "1\u20df2", "\u247f", "1\u03382", "\u0031\u200b\u0032",
              "1\u200d2", "1\ufeff2", "1\u00ad2", "1\u20602", "\u202e21", "1\u202c2", "\x0012", "1\x002", "12\x00", "1\x082",
              "\x1b[12m", "1\x7f2", "\ud83512", "\udc0012", "12\ue000", "l2", "I2", "1Z", "1\u01a7", "\u0391\u03922", "1\u0662")  # fmt: skip
    return [BOX.format(text) for text in twelve] + [TAGGED.format("so", text) for text in twelve]


def towers() -> list:
    """Expressions that take all time or memory there is."""
    powers = ["9^{9^{9^{9}}}", "9^{9^9}", "9^9^9^9", "2^{2^{31}}", "10^{10^{10}}", "(9^{99999})^{99999}", "9^{999999999}",
              r"\left(9^{9999}\right)^{9999}", "99999999!", "((9!)!)!", "9!!!!!", r"\binom{10^{9}}{5^{11}}", r"\sum_{i=1}^{10^9} i",
              r"\prod_{i=1}^{99999999} i", r"\int_0^1 x^{x^{x^x}} dx", r"\frac{9^{9999}!}{2}", r"\sqrt[9]{9^{9^{9}}}", "12e999999999",
              "1" * 900, "9" * 900 + "!", "2^{" * 60 + "2" + "}" * 60, r"\frac{1}{" * 60 + "1" + "}" * 60, r"\sqrt{" * 80 + "2" + "}" * 80,
              "(" * 400 + "13" + ")" * 400, "{" * 400 + "13" + "}" * 400, "-" * 401 + "12", "+".join(f"x_{i}" for i in range(180)),
              "*".join(f"(x+{i})" for i in range(90)), "(x+1)^{9999}", "(a+b+c+d)^{999}", r"\sin(" * 60 + "1" + ")" * 60,
              r"\begin{pmatrix}" + r"1 & 2 \\" * 90 + r"\end{pmatrix}", r"\log(" * 50 + "9^{999}" + ")" * 50]  # fmt: skip
    return [BOX.format(text) for text in powers] + [TAGGED.format("so", text) for text in powers[:16]]


def long() -> list:
    """Megabytes, and what takes more than linear time to look at."""
    return [
        r"\boxed{" * (MEGA // 7), r"\boxed{" * 4000 + "12", r"\boxed{13}" * (MEGA // 10), r"\boxed{13}, " * (MEGA // 12),
        "{" * MEGA, "}" * MEGA, "$" * MEGA, "\\" * MEGA, "<think>" * (MEGA // 7), "<answer>" * (MEGA // 8),
        "<think>\n" * (MEGA // 8) + "12", "<think>\n</think>\n<answer>\n" * (MEGA // 26), "<think>\n</think>\n<answer>\n" * 5000,
        "</think>\n<answer>\n" * (MEGA // 18), "12 or " * (MEGA // 6) + "12", "12" * (MEGA // 2), "a" * MEGA, " " * MEGA, "\n" * MEGA,
        "\x00" * MEGA, ". " * (MEGA // 2), "the answer is " * (MEGA // 14), "answer" * (MEGA // 6), "is " * (MEGA // 3), "12 is " * 5000,
        "Let $x$ and $y$ be \\boxed{" + r"}. \boxed{" * 9000, r"\text{" * 9000 + "12", r"\left(" * 9000, "- " * 9000 + "12",
        r"\boxed{" + "1" * MEGA + "}", r"\boxed{" + " " * MEGA + "13}", r"\boxed{" + "'" * 5000 + "}", r"\boxed{" + "." * 900 + "}",
        r"\boxed{" + ";" * 900 + "13}", r"\boxed{" + "{}" * 450 + "}", r"\boxed{" + "a b " * 240 + "}", r"\boxed{" + "1 2 3 " * 160 + "}",
    ]  # fmt: skip


def others() -> list:
    """After another gold answer."""
    return [
        ("10", r"\boxed{10\%}"), ("C", r"\boxed{C \text{ or } D}"), ("C", "Answer: B or C"), ("C", "A, B, C"), ("C", r"\boxed{\text{not } C}"),
        ("C", "<think>C</think> D"), ("C", "Answer: CD"), ("C", "Answer: ABCD"), ("C", "c.f. D"), ("A", "A good question. B"),
        (r"\frac{1}{3}", r"\boxed{0.333333}"), (r"\frac{1}{3}", r"\boxed{0.3}"), (r"\sqrt{2}", r"\boxed{1.414214}"), (r"\pi", r"\boxed{3.14159265}"),
        (r"\frac{1}{2}", r"\boxed{\frac{2}{1}}"), (r"\frac{1}{2}", r"\boxed{1, 2}"), ("0", r"\boxed{\emptyset}"), ("0", r"\boxed{10^{-9}}"),
        ("0", r"\boxed{}"), ("-4", r"\boxed{4}"), ("4", r"\boxed{-4}"), ("4", r"\boxed{|-4|i}"), ("(1,2)", r"\boxed{(2,1)}"), ("(1,2)", r"\boxed{1.2}"),
        ("(1,2)", r"\boxed{[1,2)}"), ("[1,2]", r"\boxed{(1,2)}"), ("1,2", r"\boxed{1,2,3}"), ("1,2", r"\boxed{1}"), ("1,2", r"\boxed{12}"),
        ("x=5", r"\boxed{y=5}"), ("x>5", r"\boxed{x<5}"), ("x>5", r"\boxed{x \ge 5}"), ("x+1", r"\boxed{x-1}"), ("x+1", r"\boxed{y+1}"),
        ("3 \\text{ m}", r"\boxed{3 \text{ km}}"), ("1000", r"\boxed{1,00}"), ("1000", r"\boxed{1.000}"), ("5", r"\boxed{5:00}"), ("5", r"\boxed{\text{five or six}}"),
        ("yes", r"\boxed{no}"), ("yes", r"\boxed{yes or no}"), ("even", r"\boxed{\text{not even}}"), ("even", r"\boxed{odd}"), ("\\infty", r"\boxed{-\infty}"),
        ("2\\sqrt{3}", r"\boxed{2 + \sqrt{3}}"), ("x^2", r"\boxed{x2}"), ("x^2", r"\boxed{2x}"), ("2^{10}", r"\boxed{10^2}"),
    ]  # fmt: skip


KINDS = {
    "think only": think_only, "lists": lists, "boxes": boxes, "tags": tags, "not the number": not_the_number, "digits": digits,
    "towers": towers, "long": long, "others": others,
}  # fmt: skip
