r"""What an answer says, read strictly: one number, one expression, one list or some words, and nothing beside it.

math-verify is made to find an answer in whatever a model writes: of ``12 or 13`` it takes one, ``2x = 12`` and
``13 = 12`` are 12 to it, as are ``12%``, ``12 thousand``, ``12.0000001`` and digits of other scripts. Here a text is
taken apart first; math-verify is asked only whether two single expressions are equal (`same`).

Numbers are compared as fractions, exactly: 0.333333 is not 1/3. Units are put aside, multipliers (dozen, thousand,
percent) are not: 12% is 0.12. Whatever cannot be read so is compared with the gold answer as text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from scalpel.grading.text import Part

LONGEST = 1000  # characters of an answer
LOOKED_AT = 2000  # characters at the end of a text without tags and boxes
DIGITS = 400  # of a number, and the largest power of ten

Equal = Callable[[str, str], bool]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


@dataclass(frozen=True)
class Reading:
    """text: for comparison as text. value: of a plain number. latex: of an expression, None when it is none. percent:
    the number is to be divided by 100; `value` is already. name: x of ``x = 12``. checks: further sides of
    ``3 + 9 = 12`` that must be equal, too. unit: the words after it. items: of a list. words: nothing but words.
    relation: an equation or inequality that is no assignment. equation: the whole of ``y = 2x + 3``, to compare with
    such a one."""

    text: str
    value: Fraction | None = None
    latex: str | None = None
    percent: bool = False
    name: str = ""
    checks: tuple[str, ...] = ()
    unit: str = ""
    items: tuple[Reading, ...] = ()
    words: bool = False
    relation: bool = False
    equation: str | None = None


# ---------------------------------------------------------------- characters

_MAPPED = str.maketrans(
    {
        "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00f7": r"\div ",
        "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
        "\u2260": r"\ne ", "\u2248": r"\approx ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
        "\u00b1": r"\pm ", "\u00b0": r"^\circ ", "\u00b2": "^2", "\u00b3": "^3", "\u00bd": r"\frac{1}{2}",
        "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2002": " ", "\u2003": " ", "\u221a": r"\sqrt ",
        "\u03c0": r"\pi ", "\u03b8": r"\theta ", "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03b3": r"\gamma ",
        "\u03bb": r"\lambda ", "\u03bc": r"\mu ", "\u00b5": r"\mu ", "\u03c6": r"\phi ", "\u03c9": r"\omega ",
        "\u0394": r"\Delta ", "\u2220": r"\angle ", "\u25b3": r"\triangle ", "\u00a3": r"\$", "\u20ac": r"\$",
        "\u00a5": r"\$", "\t": " ", "\r": "\n", "\u2028": "\n", "\u2029": "\n", "\u2026": "...",
        "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}",
        "\u2102": r"\mathbb{C}", "\u2103": r"^\circ C", "\u3001": ",", "\u3002": ".",
    }
    | {chr(0xFEE0 + ord(c)): c for c in "()[]{},.:;=+-<>%?!|"}  # full width, digits and letters aside
)  # fmt: skip
_RAISED = re.compile(
    "[\u2070\u2074-\u2079\u207a\u207b\u207f\u00b9][\u2070\u2074-\u2079\u207a\u207b\u207f\u00b9\u00b2\u00b3]*"
)
_LOWERED = re.compile("[\u2080-\u2089\u2099]+")


def _mapped(text: str) -> str:
    """A text with LaTeX for the signs that stand for it; raised digits are exponents, lowered ones indices."""
    text = _RAISED.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match.group())}}}", text)
    text = _LOWERED.sub(lambda match: f"_{{{unicodedata.normalize('NFKC', match.group())}}}", text)
    return text.translate(_MAPPED)


def _legible(text: str) -> bool:
    """Whether every character is a line break or visible, and every digit one of 0 to 9."""
    if text.isascii():
        return all(character >= " " or character == "\n" for character in text) and "\x7f" not in text
    return all(
        character == "\n"
        or (character.isascii() and character >= " ")
        or (unicodedata.category(character)[0] in "LPSZ" and unicodedata.category(character) != "Lm")
        for character in text
    ) and not any(unicodedata.normalize("NFKC", c) != c for c in text if not c.isascii())


# ---------------------------------------------------------------- LaTeX put aside

_SPACES = re.compile(r"(\\\\)|\\[,;: ]|\\(?:quad|qquad|thinspace|medspace)(?![A-Za-z])|~")
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|boldsymbol|bm|emph)"
    r"\s*\{([^{}]*)\}"
)
_SIMPLER = [
    (re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits|!)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\(?:lt)(?![A-Za-z])"), "<"),
    (re.compile(r"\\(?:gt)(?![A-Za-z])"), ">"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), " degrees "),
    (re.compile(r"\\sqrt\s+(\d|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![\\A-Za-z])infinity(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"\\cdots|\\ldots|\\dots[a-z]?|\u2026"), "..."),
]
_NEWLINE = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
_DELIMITERS = re.compile(r"(\\\\)|(?<!\\)\$+|\\[()\[\]]")
_ENVIRONMENT = re.compile(r"\\begin\s*\{([a-z]+)\*?\}")
_KNOWN_COMMANDS = _set(
    "frac sqrt pi cdot times div pm mp infty cup cap in le ge ne approx to sin cos tan cot sec csc arcsin arccos "
    "arctan sinh cosh tanh log ln lg exp angle triangle sum prod int lim binom tbinom dbinom overline bar vec hat "
    "lfloor rfloor lceil rceil lvert rvert vert mid langle rangle emptyset varnothing setminus mathbb mathcal begin "
    "end perp parallel pmod bmod mod max min gcd lcm det alpha beta gamma delta epsilon varepsilon zeta eta theta "
    "iota kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi "
    "Omega circ prime ast star overrightarrow widehat ell Re Im arg cong sim equiv subset subseteq partial colon land "
    "lor lnot neg Rightarrow rightarrow implies iff widetilde dagger"
)
_GREEK = _set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi "
    "psi omega"
)
_ENVIRONMENTS = frozenset(("pmatrix", "bmatrix", "vmatrix", "matrix", "cases", "array", "aligned"))


def _simplified(text: str) -> str:
    """A text without math delimiters, spacing, font commands and the like; words in them stay."""
    if not _ENVIRONMENT.search(text):
        text = _NEWLINE.sub("\n", text)
    text = _DELIMITERS.sub(lambda match: match[1] or " ", text)
    for _ in range(3):  # fonts in fonts
        text, found = _WRAPPER.subn(r" \1 ", text)
        if not found:
            break
    for pattern, by in _SIMPLER:
        text = pattern.sub(by, text)
    text = re.sub(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))", ",", text)  # thousands
    text = _SPACES.sub(lambda match: match[1] or " ", text)
    return text.replace(r"\%", "%").replace(r"\$", " ").replace(r"\#", "#")


def _bare(text: str) -> str:
    """Without blanks, punctuation, emphasis and braces around all of it."""
    while True:
        before = text
        text = text.strip(' \n`"*')
        if text.endswith((".", ",", ";", ":")) and not text.endswith(("..", r"\,", r"\;", r"\:")):
            text = text[:-1]
        text = re.sub(r"(?<![A-Za-z])'(.*)'$", r"\1", text) if text.startswith("'") else text
        if text.startswith("{") and text.endswith("}") and _closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text == before:
            return text


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed; -1 when it is not."""
    return next((place for place, depth in _depths(text, start) if depth == 0), -1)


def _depths(text: str, start: int = 0) -> Iterator[tuple[int, int]]:
    """(place, how many brackets are open after it) from `start` on; of what a backslash escapes braces alone count."""
    depth, escaped = 0, False
    for place in range(start, len(text)):
        character = text[place]
        if (escaped and character not in "{}") or (not escaped and character == "\\"):
            escaped = not escaped
            continue
        escaped = False
        depth += (character in "{([") - (character in "})]")
        yield place, depth


# ---------------------------------------------------------------- numbers

_INTEGER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![ \d])|\d+"
_NUMBER = re.compile(rf"([-+]?)\s*(?:({_INTEGER})(\.\d*)?|(\.\d+))(?:\s*[eE]([-+]?\d+))?")
_POWER = re.compile(r"\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+)|\(\s*([-+]?\d+)\s*\))")
_FRACTION = re.compile(r"([-+]?)\s*(\d+)?\s*\\frac\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))")
_SLASHED = re.compile(r"([-+]?)\s*(?:(\d+)\s+)?(\d+)\s*/\s*(\d+)")


def number(text: str) -> Fraction | None:
    """The value of a plain number or fraction; None when the text is no such thing."""
    text = text.strip()
    if len(text) > DIGITS:
        return None
    if text.startswith("(") and text.endswith(")") and _closing(text, 0) == len(text) - 1:
        return number(text[1:-1])
    if match := _NUMBER.fullmatch(text):
        return _decimal(match, 0)
    if (match := _NUMBER.match(text)) and not match[5] and (power := _POWER.fullmatch(text, match.end())):
        return _decimal(match, int(next(filter(None, power.groups()))))
    if match := _FRACTION.fullmatch(text):
        return _ratio(match[1], match[2], match[3] or match[4], match[5] or match[6])
    if match := _SLASHED.fullmatch(text):
        return _ratio(match[1], match[2], match[3], match[4])
    return None


def _decimal(match: re.Match, power: int) -> Fraction | None:
    power += int(match[5] or 0)
    if abs(power) > DIGITS:
        return None
    whole = re.sub("[ ,]", "", match[2] or "0")
    places = (match[3] or match[4] or ".")[1:]
    value = Fraction(int(whole + places), 10 ** len(places)) * Fraction(10) ** power
    return -value if match[1] == "-" else value


def _ratio(sign: str, whole: str | None, top: str, bottom: str) -> Fraction | None:
    if int(bottom) == 0 or (whole and int(top) < 0):
        return None
    value = Fraction(int(top), int(bottom)) + int(whole or 0)
    return -value if sign == "-" else value


# ---------------------------------------------------------------- words

STOP = _set(  # with one of these beside it a number is not the answer, or not alone
    "or to not no never nor neither either nothing none except without instead rather wrong incorrect false "
    "impossible hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens "
    "score half halves third thirds quarter quarters fourth fourths fifth fifths tenth tenths hundredth hundredths "
    "thousandth double twice triple thrice times squared cubed factorial plus minus over divided multiplied modulo "
    "mod base power root one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety zero first "
    "second-to-last between about around approximately roughly nearly almost circa least most more less fewer under "
    "above below beyond versus vs but maybe perhaps possibly probably might could unless if unknown unsure undefined "
    "isn't doesn't don't can't cannot won't wasn't aren't didn't k bn etc percentage pct wait actually"
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'\-]*")
_SINGLE_UNITS = frozenset("mgsLlhNJWVAKCFu")
_FUNCTIONS = _set("sin cos tan cot sec csc log ln exp arcsin arccos arctan max min gcd lcm mod det")
_TRAILING = re.compile(
    r"(?:\s+(?:[A-Za-z][A-Za-z'\-]*\.?)(?:\s*\^\s*\{?\s*[23]\s*\}?)?|\s*/\s*[A-Za-z]+(?:\s*\^\s*\{?\s*[23]\s*\}?)?)+$"
)
_TO_SOMEBODY = re.compile(r"\bto\s+(?:the|a|an|his|her|their|its|my|your|our|each|every)\b", re.IGNORECASE)
_ATTACHED = re.compile(r"(?<=\d)(mm|cm|km|kg|mg|ml|mL|ft|in|lbs?|hrs?|min|mph|km/h|m/s)(?:\s*\^\s*\{?\s*[23]\s*\}?)?$")


def _words(text: str) -> list[str]:
    return [word.lower().strip("'-") for word in _WORD.findall(text)]


def _without_unit(text: str) -> tuple[str, str] | None:
    """(text, unit) with words after an expression put aside; None when one of them changes what it says."""
    match = _TRAILING.search(text) or _ATTACHED.search(text)
    if not match or not re.search(r"[\d})\]]", text[: match.start()]):
        return text, ""
    words, before = _words(_TO_SOMEBODY.sub(" ", match.group())), text[: match.start()]
    letters = [word for word in words if len(word) == 1]
    if letters and not (set(letters) <= {u.lower() for u in _SINGLE_UNITS} and number(before) is not None):
        return text, ""  # variables, not units
    if any(word in STOP for word in words):
        return None
    powers = "".join(f"^{power}" for power in re.findall(r"\^\s*\{?\s*([23])", match.group()))
    return before, " ".join(word.rstrip("s") for word in words) + powers


# ---------------------------------------------------------------- expressions

_RELATION = re.compile(
    r"<=|>=|!=|(?<![<>!])==?|[<>]|\\(?:le|ge|ne|approx|in|equiv|cong|sim|to|subset|subseteq|perp|parallel|mid"
    r"|Rightarrow|rightarrow|implies|iff|land|lor|lnot|neg)(?![A-Za-z])"
)
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?'*)(?:\s*\([^()=]*\)|\s*_\s*\{[^{}]*\})?"
    r"(?:\s*[+-]\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?)*"
    r"|\\(?:angle|overline|vec|triangle|sin|cos|tan|cot|sec|csc|log|ln|det|dim|deg)\s*[({]?\s*\\?[A-Za-z]+\s*[)}]?"
    r"|\|?[A-Z]{2,3}\|?"
)
_SEPARATOR = re.compile(r"[,;\n]|\b(?:and|or)\b|(?<!\\)&", re.IGNORECASE)
_COMMAND = re.compile(r"\\([A-Za-z]+)")


def expression(text: str) -> Reading | None:
    """The reading of an answer that stands alone; None when it says nothing or is illegible."""
    text = _mapped(text)
    if not text.strip() or len(text) > LONGEST or not _legible(text):
        return None
    simple = _bare(_simplified(text))
    if not simple:
        return None
    parts = _split(_members(simple))
    if len(parts) == 1 and simple.count(r"\pm") == 1 and r"\mp" not in simple:
        parts = [simple.replace(r"\pm", sign) for sign in "+-"]
    if len(parts) == 1:
        return _item(parts[0])
    items = [_item(part) for part in parts]
    if any(item is None for item in items):
        return Reading(_as_text(simple))
    return Reading(_as_text(simple), items=tuple(cast("list[Reading]", items)))


def _members(text: str) -> str:
    r"""What stands in the braces of ``\{1, 2\}``, a set given by its members; any other text as it is."""
    inner = text[2:-2]
    if text.startswith(r"\{") and text.endswith(r"\}") and _closing(text, 1) == len(text) - 1:
        return text if not inner.strip() or re.search(r"\||\\mid|:|\.\.|\\in(?![A-Za-z])|[<>]", inner) else inner
    return text


def _split(text: str) -> list[str]:
    """The items of a list: what commas, semicolons, "and", "or" and line breaks outside of brackets separate."""
    if number(text) is not None or _ENVIRONMENT.search(text):
        return [text]
    places, last = [], 0
    separators = {match.start(): match for match in _SEPARATOR.finditer(text)}
    for place, depth in _depths(text):
        match = separators.get(place)
        if match and depth == 0 and place >= last and not _thousands(text, match):
            places.append((last, match.start()))
            last = match.end()
    parts = [text[a:b].strip() for a, b in [*places, (last, len(text))]]
    return [part for part in parts if part] or [text]


def _thousands(text: str, comma: re.Match) -> bool:
    """Whether a comma groups digits: 1,000 but not 1, 000 nor 11,12."""
    place = comma.start()
    group = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})*$").search(text[max(0, place - 40) : place])
    return text[place] == "," and bool(group) and bool(re.match(r"\d{3}(?!\d)", text[place + 1 : place + 5]))


def _item(text: str) -> Reading | None:
    """The reading of what is no list."""
    text = _bare(text)
    if not text:
        return None
    plain = _as_text(text)
    if not re.search(r"[\d\\]", text) and re.fullmatch(r"[A-Za-z' \-().]+", text):
        return _letters(text)
    if not text.isascii():
        return Reading(plain)
    sides = _RELATION.split(text)
    operators = _RELATION.findall(text)
    if operators and not all(op in ("=", "==", r"\in") for op in operators):
        return Reading(plain, latex=_latex(text), relation=True)
    if operators:
        return _chain(text, [side.strip() for side in sides], operators)
    return _single(text)


def _letters(text: str) -> Reading:
    bare = text.strip()
    if re.fullmatch(r"\(\s*[A-Za-z]\s*\)|[A-Za-z]\)", bare):
        bare = bare.strip("() ")
    if re.fullmatch(r"[A-Za-z]{1,3}", bare) and bare.lower() not in STOP:
        return Reading(bare, latex=bare if len(bare) < 3 else None, words=len(bare) > 1)
    if re.fullmatch(r"[A-Za-z](?:[ ]*[-+()*][ ]*[A-Za-z()])+\)*", bare):  # a + b
        return Reading(_as_text(bare), latex=bare)
    return Reading(" ".join(bare.casefold().split()), words=True)


def _chain(text: str, sides: list[str], operators: list[str]) -> Reading | None:
    """``x = 12``, ``3 + 9 = 12``, an equation."""
    plain = _as_text(text)
    if not sides[0] and all(op in ("=", "==") for op in operators):
        sides, operators = sides[1:], operators[1:]
    if any(not side for side in sides):
        return Reading(plain)
    last = _single(sides[-1])
    if len(sides) == 1:
        return last
    if last is None or last.words:
        return Reading(plain, latex=_latex(text), relation=True)
    first = sides[0]
    named = bool(_NAME.fullmatch(first)) or _caption(first)
    others = [side for side in (sides[1:-1] if named else sides[:-1]) if not _symbolic(side)]
    if not named and len(others) < len(sides) - 1:
        return Reading(plain, latex=_latex(text), relation=True)
    checks = tuple(item.latex or "" for item in map(_single, others) if item is not None)
    if len(checks) < len(others) or (r"\in" in operators and not named):
        return Reading(plain)
    simple = bool(re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([A-Za-z]\))?", first))
    if named and not simple and re.search("[+-]", first):  # x - y = -1
        return Reading(plain, latex=_latex(text), relation=True)
    line = _latex(text) if named and last.value is None and len(sides) == 2 else None
    return Reading(
        plain, last.value, last.latex, last.percent, _as_text(first) if named else "", checks, last.unit, equation=line
    )


_SMALL = _set(  # words that no product of variables looks like
    "is are was be it he she we you me my his her the an as at by in of on so if then has had get got its all and any "
    "day has how who why yes let use via per see say can did say put new old try our out off up us am do go"
)
_VERBS = _set("is are be equals answer so hence thus then we get have let since because when that")


def _caption(text: str) -> bool:
    """Whether a text is what a quantity is called: ``total cost``."""
    return bool(re.fullmatch(r"[A-Za-z' ]+", text)) and not set(_words(text)) & (STOP | _VERBS)


def _symbolic(side: str) -> bool:
    """Whether letters of variables stand in it."""
    bare = _COMMAND.sub(lambda match: " x " if match[1] in _GREEK else " ", side)
    return bool(re.search("[A-Za-z]", bare)) and (_without_unit(bare) or (bare, ""))[0] == bare


def _single(text: str) -> Reading | None:
    """One expression, with a unit or a percent sign perhaps."""
    plain = _as_text(text)
    text = text.strip()
    percent = False
    if match := re.search(r"\s*(?:%|\bper ?cent)$", text):
        text, percent = text[: match.start()], True
    elif found := _without_unit(text):
        text, unit = found
        return _value(text, plain, False, unit)
    else:
        return Reading(plain)
    return _value(text, plain, percent, "")


def _value(text: str, plain: str, percent: bool, unit: str) -> Reading:
    value = number(text)
    if value is not None:
        value = value / 100 if percent else value
        top, bottom = value.numerator, value.denominator
        latex = rf"\frac{{{top}}}{{{bottom}}}" if bottom > 1 else str(top)
        return Reading(plain, value, latex, percent, unit=unit)
    return Reading(plain, latex=_latex(text), percent=percent, unit=unit)


_TOWER = re.compile(r"\^\s*(?:\{[^{}]*\^|\([^()]*\^|[^\s{(]\s*\^|\{?\s*[-+]?\d{5})|!\s*!|\d{5,}\s*!")  # or as large


def _latex(text: str) -> str | None:
    """What math-verify is given; None for what it would make something else of, and for towers of powers."""
    commands = set(_COMMAND.findall(text))
    if not commands <= _KNOWN_COMMANDS or set(_ENVIRONMENT.findall(text)) - _ENVIRONMENTS:
        return None
    if _TOWER.search(text) or re.search(
        r"(?<!_)\d\s+\d|\d\s*_|[%#@?`\"']|\.\.|\d\.\d+\.|\d:|:\d|(?<![A-Za-z])0[xX]|[-+*/^]\s*$", text
    ):
        return None
    for run in re.findall(
        r"[A-Za-z]{2,}", re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}(?:\{[lcr|]*\})?|\\[A-Za-z]+", " ", text)
    ):
        if run not in _FUNCTIONS and (len(run) > 3 or run.lower() in STOP or run in _SMALL):
            return None
    return text.strip() or None


def _as_text(text: str) -> str:
    """Without blanks, those between digits aside, and without braces around a single letter or digit of an exponent."""
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text.strip())
    return re.sub(r"_\{(\w+)\}|\^\{(\w)\}", lambda m: f"_{m[1]}" if m[1] else f"^{m[2]}", text)


# ---------------------------------------------------------------- sentences

_ANCHOR = re.compile(r"answer\b[^.\n]{0,40}?(?:\bis\b|\bare\b|[:=])\s*(?:\(?(?:option|choice)\s+)?", re.IGNORECASE)
_COPULA = re.compile(
    r"(?:\b(?:is|are|be|was|were|equals?|gives?|has|have|gets?)\b|:(?!\d)|(?<=[A-Za-z0-9)])\s*=(?=\s*[-+($]*\d))\s*"
    r"(?:(?:equal\s+to|exactly|indeed|simply|just|thus|therefore|also|option|choice)\s+)*",
    re.IGNORECASE,
)
DENIALS = _set(
    "or not no never neither nor either if unless wrong incorrect false maybe perhaps possibly but than except "
    "instead rather whether between could might may isn't doesn't don't can't cannot won't wasn't aren't didn't "
    "wait actually"
)
_OF_OTHERS = frozenset(("could", "between", "than"))  # which before "is" deny nothing: the most he could have left is 2
_COULD = re.compile(r"\bcould\s+(?:[a-z]+\s+)?be\b", re.IGNORECASE)
_SUM = re.compile(r"[\d\s+\-*/().,$]*$")  # the numbers before an equals sign
_END = re.compile(r"(?<=[.!?])[\"')*]*\s+|\n+")


def sentence(text: str) -> Reading | None:
    """What the last sentence that holds a number, a formula or a choice's letter says: what follows "answer is", else
    its last "is", "has", "=" or ":", else all of it; after ``####`` the line.

    None when a word of DENIALS stands before that or in a sentence after it, when it is a question, when what follows
    says more than one thing, or when the line before is an answer, too: the items of a list.
    """
    text = _mapped(text)[-LOOKED_AT:]
    if "####" in text:
        return expression(text.rpartition("####")[2].strip().partition("\n")[0])
    sentences = [part for part in _END.split(text.replace("**", "").replace("`", "")) if part.strip()]
    while sentences:
        said = sentences.pop()
        if re.search(r"\d|\\|\$|\b[A-HJ]\b(?! [a-z])", said):
            found = _said(said)
            return None if sentences and found is not None and _also(sentences[-1], said, found) else found
        if set(_words(said)) & DENIALS:
            return None
    return None


def _also(before: str, said: str, found: Reading) -> bool:
    """Whether the sentence before is an answer by itself, or says one where this one is nothing but an answer.

    found: what this one says. Said as the answer, or a second time, it is alone; a sentence in words is no further
    item after an equation.
    """
    if _ANCHOR.search(said):
        return False
    reading, this = expression(before), expression(said)
    bare = this is not None and _proper(this)
    if (reading is None or not _proper(reading)) and bare:
        reading = _said(before)
    if reading is None or not _proper(reading) or reading.checks:
        return False
    if not bare and (reading.relation or reading.name):
        return False
    return reading.value is None or reading.value != found.value


def _said(said: str) -> Reading | None:
    anchors = list(_ANCHOR.finditer(said))
    found = anchors or list(_COPULA.finditer(said))
    start = found[-1].end() if found else 0
    before = said[:start]
    if anchors or (found and found[-1].group().strip() == "="):  # what stands before a comma is said of other things
        before = re.split(r",\s", said[: found[-1].start()])[-1] + found[-1].group()
    if found and not anchors and found[-1].group().strip() == "=":
        start = _SUM.search(said, 0, found[-1].start()).start()  # type: ignore[union-attr]
    if said.rstrip().endswith("?") or set(_words(before)) & (DENIALS - _OF_OTHERS) or _COULD.search(said):
        return None
    reading = _choice(said[start:]) or expression(said[start:])
    return reading if reading is not None and _proper(reading) else None


def _proper(reading: Reading) -> bool:
    """Whether it is a number, a formula, or a list of such."""
    if reading.items:
        return all(map(_proper, reading.items))
    return reading.value is not None or bool(reading.latex and not reading.words)


# ---------------------------------------------------------------- readings of a part, and comparison


def readings(part: Part) -> list[Reading]:
    """What the answer part of a completion says: as an expression, and what its last sentence says where it is none."""
    whole = expression(part.text)
    found = [whole or _illegible(part.text), _choice(part.text)]
    if not part.boxed and (whole is None or not _proper(whole)):
        found.append(sentence(part.text))
    return [reading for reading in found if reading is not None]


def _illegible(text: str) -> Reading | None:
    """A text that only the very same one is equal to."""
    return Reading(_as_text(text)) if text.strip() and len(text) <= LONGEST else None


_OPTION = re.compile(r"\s*\(?([A-J])(?:\)[.:]?|[.:])\s+(?=\S)")


def _choice(text: str) -> Reading | None:
    """The letter of ``(D) 3 m/s`` or ``D. zero``: an option with its text, and no other option beside it."""
    simple = _simplified(_mapped(text[:LONGEST]))
    match = _OPTION.match(simple)
    if not match or len(text) > LONGEST or not _legible(simple):
        return None
    rest = simple[match.end() :]
    alone = "\n" not in rest.strip() and not re.search(r"\b[A-J][).:]", rest) and not set(_words(rest)) & DENIALS
    return Reading(match[1], latex=match[1]) if alone else None


def read_gold(text: str) -> Reading | None:
    """The reading of a gold answer; None when there is nothing to compare with."""
    return expression(text) or (Reading(_as_text(text)) if text.strip() else None)


def same(gold: Reading, answer: Reading, equal: Equal) -> bool:
    """Whether an answer says what the gold answer says. equal: whether two LaTeX expressions are equal."""
    if gold.text == answer.text and gold.percent == answer.percent:
        return True
    if gold.items or answer.items:
        return _same_list(gold, answer, equal)
    if gold.unit and answer.unit and not _same_unit(gold.unit, answer.unit):
        return False
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if gold.relation or answer.relation:
        whole = [one.latex if one.relation else one.equation for one in (gold, answer)]
        return _asked(whole[0], whole[1], equal)
    if gold.words or answer.words:
        return gold.text.casefold() == answer.text.casefold()
    if not all(_asked(check, answer.latex, equal) for check in answer.checks):
        return False
    if gold.value is not None and answer.value is not None:
        return gold.value == answer.value
    return gold.percent == answer.percent and _asked(gold.latex, answer.latex, equal)


def _same_unit(one: str, other: str) -> bool:
    """Whether two units are written alike; a power may be left out."""
    (name, *power), (other_name, *other_power) = one.split("^"), other.split("^")
    return name == other_name and (not power or not other_power or power == other_power)


def _asked(one: str | None, other: str | None, equal: Equal) -> bool:
    return one is not None and other is not None and equal(one, other)


def _same_list(gold: Reading, answer: Reading, equal: Equal) -> bool:
    """Whether every item of one list has its equal in the other."""
    left = list(answer.items)
    if not gold.items or len(gold.items) != len(left):
        return False
    names = [{item.name for item in one.items} - {""} for one in (gold, answer)]
    if sorted(map(len, names)) == [0, len(left)]:  # x = 1, y = 2 and 1, 2
        return all(same(item, other, equal) for item, other in zip(gold.items, left, strict=True))
    for item in gold.items:
        match = next((other for other in left if same(item, other, equal)), None)
        if match is None:
            return False
        left.remove(match)
    return True
