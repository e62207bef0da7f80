"""Causal tracing of known facts (Meng et al., 2022, "Locating and editing factual associations in GPT"; paper app. D).

A fact is a subject, a prompt that contains it, and an attribute that the model names next. Noise on the embeddings of
the subject's tokens corrupts the run. Then one state of the clean run is put back at one token, and what the
attribute's probability regains is that state's indirect effect:

    effect = mean over noised copies of p(attribute | corrupted, state restored) - p(attribute | corrupted)

Three kinds of states are restored: the output of a whole layer (`hidden`), and the outputs of the MLP or of attention
in a window of layers around a layer (the modules' outputs; OLMo-2's norms behind them act on each token alone, so that
restoring before or after them is the same). The average indirect effect (AIE) is the mean over facts. A fact with
several tokens of one position class (only `middle subject` and `further`) enters by their mean, so each fact counts
once; the ROME code pools the tokens of all facts instead.

Like the ROME code: noise of `recipe.noise` times the standard deviation of all subjects' token embeddings, each subject
tokenised by itself; the same noise for all restorations of one fact; facts whose most probable next token is not
the attribute are left out. Unlike it: each fact has noise of its own, and the attribute's *first* token is looked for,
since an attribute may have several tokens (ROME keeps those of one token alone; notes.json counts the others).

BOS: a prompt begins with what the tokenizer itself puts in front of raw text. Llama was trained on texts that begin
with BOS and is far off its distribution without; OLMo-2's texts have none, like GPT-2's in ROME. BOS precedes the
subject: it is neither noised nor in any of the six classes.

What is computed. Nothing before the subject ever changes, and a restoration at token t in layer l changes nothing
before t nor below l. So the corrupted run is kept: its layers' outputs, keys and values. All restorations at token t
(every layer and kind, times all noised copies) then go through the layers as one batch of the tokens from t on; each
enters above the layer where it begins, and attends to the kept keys and values before t. The first layer of a
restoration costs nothing of its own: a module's output at t touches the layer's own output at t alone, so that one pass
with the clean output at *all* tokens yields the first layer of the restorations at each of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scalpel.chat import control_text, holds, load_tokenizer
from scalpel.config.analysis import TraceRecipe, TraceSettings
from scalpel.errors import UserError
from scalpel.progress import track

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("hidden", "mlp", "attention")
BEFORE = "before subject"  # restoring there has no effect: in trace.parquet, not in aie.parquet
POSITIONS = ("first subject", "middle subject", "last subject", "first subsequent", "further", "last")
READ_AT = "last"  # the class whose AIE names the layers to freeze: the paper takes those of the late site
COLUMNS = ("subject", "prompt", "attribute")


class Fact(NamedTuple):
    """A tokenised fact: its row in the file, its prompt's token ids, and which of them are the subject's."""

    row: int
    ids: list[int]
    subject: range
    answer: int  # id of the attribute's first token
    answer_tokens: int  # of the whole attribute


class Clean(NamedTuple):
    """The undisturbed run of a fact. outputs: kind -> one tensor, tokens x hidden, for each layer."""

    top: int  # the most probable next token
    probability: float  # of the attribute
    outputs: dict[str, list[Tensor]]


class Corrupted(NamedTuple):
    """The runs with noise. restored: kind -> for each layer its output with the clean state at all tokens."""

    probability: Tensor  # samples
    hidden: list[Tensor]  # layer -> samples x tokens x hidden
    keys: list[Tensor]  # layer -> samples x heads x tokens x head size
    values: list[Tensor]
    restored: dict[str, list[Tensor]]  # samples (or one) x tokens x hidden


class Restoration(NamedTuple):
    kind: str
    layer: int
    window: range  # of layers whose states are restored


class Effects(NamedTuple):
    """What was measured on one fact. effect: kinds x tokens x layers, float64."""

    clean: float
    corrupted: float
    effect: np.ndarray


def trace(model: Path, facts: Path, recipe: TraceRecipe, settings: TraceSettings, out: Path) -> None:
    """Write out/trace.parquet, out/aie.parquet and out/notes.json.

    facts: parquet file with text columns subject, prompt (which contains the subject) and attribute (which follows
    the prompt after a blank), as in ROME's known_1000.
    trace.parquet: fact (row of the file), kind, position (class), token (index in the prompt, BOS included), layer
    (from 0), effect, clean and corrupted (probabilities of the attribute), of facts that the model knows.
    aie.parquet: kind, position, layer, aie, stderr, low, high (95% interval), facts; see `average`.
    notes.json: facts read and used, rows left out, noise_std (of what was added), and of how many used facts the
    attribute has several tokens.
    Raises UserError for unreadable facts, for a model without Llama's parts, and where it knows none of the facts.
    """
    import numpy as np
    import torch

    from scalpel.weights import default_device, load_model

    torch.set_num_threads(settings.threads)
    asked = read_facts(facts, recipe.facts)
    tokenizer = load_tokenizer(model)
    control = control_text(tokenizer)
    for row, item in enumerate(asked):
        if holds(control, item):
            raise UserError(f"{facts}: row {row} holds the text of a special token of the model's; remove it.")
    tokenised = [tokenised_fact(tokenizer, facts, row, **item) for row, item in enumerate(asked)]
    loaded = load_model(model, "float32", default_device())
    noise = recipe.noise * embedding_std(loaded, tokenizer, [item["subject"] for item in asked])
    width = loaded.get_input_embeddings().embedding_dim

    used, measured = [], []
    for fact in track(tokenised, "causal tracing, fact"):
        clean = clean_run(loaded, fact)
        if clean.top != fact.answer:
            continue
        drawn = np.random.default_rng([recipe.seed, fact.row]).standard_normal(
            (recipe.samples, len(fact.subject), width)
        )
        used.append(fact)
        measured.append(effects(loaded, fact, clean, noise * drawn, recipe.window, settings.batch_size))
    if not used:
        raise UserError(
            f"{model}: to none of the {len(asked)} prompts of {facts} does the model answer with the attribute; "
            "give facts that it knows."
        )
    _write_trace(out / "trace.parquet", used, measured)
    _write_aie(out / "aie.parquet", used, measured)
    notes = {
        "facts": len(asked),
        "used": len(used),
        "left_out": len(asked) - len(used),
        "rows_left_out": sorted({fact.row for fact in tokenised} - {fact.row for fact in used}),
        "attributes_of_several_tokens": sum(fact.answer_tokens > 1 for fact in used),
        "noise_std": noise,
    }
    (out / "notes.json").write_text(json.dumps(notes, indent=1) + "\n")


def layers_above(aie: Path, threshold: float, kind: str = "mlp") -> list[int]:
    """The layers, counted from 0, whose AIE of this kind at the *last token* is above `threshold`.

    Appendix D sees an early site at the last subject token and a late site at the last token, and freezes "due to the
    apparent relative strength of the late site" all layers with AIE > 0.1: it reads the last token.
    aie: an aie.parquet of `trace`. UserError when no layer or every layer is above the threshold.
    """
    import pyarrow.parquet as pq

    wanted = [("kind", "=", kind), ("position", "=", READ_AT)]
    rows = sorted(
        pq.read_table(aie, columns=["layer", "aie"], filters=wanted).to_pylist(), key=lambda row: row["layer"]
    )
    above = [row["layer"] for row in rows if row["aie"] > threshold]
    if not above:
        largest = max(rows, key=lambda row: row["aie"])
        raise UserError(
            f"{aie}: no layer's AIE ({kind}, last token) is above the threshold {threshold:g}; the largest is "
            f"{largest['aie']:.4g} in layer {largest['layer']}: choose a lower one."
        )
    if len(above) == len(rows):
        smallest = min(rows, key=lambda row: row["aie"])
        raise UserError(
            f"{aie}: every layer's AIE ({kind}, last token) is above the threshold {threshold:g}; the smallest is "
            f"{smallest['aie']:.4g} in layer {smallest['layer']}: choose a higher one."
        )
    return above


# ---------------------------------------------------------------- facts


def read_facts(path: Path, count: int | None) -> list[dict[str, str]]:
    """subject, prompt and attribute of the first `count` rows; UserError naming the row that lacks text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise UserError(f"{path} is no readable parquet file with columns {', '.join(COLUMNS)}.") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}; causal tracing needs {', '.join(COLUMNS)}.")
    rows = table.slice(0, count).to_pylist()
    if not rows:
        raise UserError(f"{path} holds no facts; give at least one.")
    for number, row in enumerate(rows):
        for name in COLUMNS:
            if not isinstance(row[name], str) or not row[name].strip():
                raise UserError(f"{path}: row {number} has no text in {name}; fill it in or drop the row.")
        if row["subject"] not in row["prompt"]:
            raise UserError(
                f"{path}: row {number}: the subject {row['subject']!r} does not occur in the prompt {row['prompt']!r}; "
                "write it as the prompt does."
            )
    return rows


def tokenised_fact(
    tokenizer: PreTrainedTokenizerBase, path: Path, row: int, subject: str, prompt: str, attribute: str
) -> Fact:
    """A fact's token ids, with what the tokenizer puts in front of text (BOS, of Llama), and its subject's tokens.

    Prompt, blank and attribute are tokenised together; what precedes the first token that reaches into the attribute
    is the prompt. A token belongs to the subject when it covers any character of its first occurrence, so one that
    straddles its boundary (a blank before it, say) does.
    """
    whole = tokenizer(f"{prompt} {attribute}", return_offsets_mapping=True, return_special_tokens_mask=True)
    first = prompt.index(subject)
    within = list(zip(whole["offset_mapping"], whole["special_tokens_mask"], strict=True))
    of_text = [i for i, (_, special) in enumerate(within) if not special]
    of_answer = [i for i in of_text if within[i][0][1] > len(prompt) + 1]
    of_subject = [
        i for i in of_text if i < of_answer[0] and within[i][0][0] < first + len(subject) and within[i][0][1] > first
    ]
    if not of_subject:
        raise UserError(f"{path}: row {row}: no token of the prompt is the subject's ({subject!r}); drop the row.")
    ids = whole["input_ids"]
    answer = of_answer[0]
    return Fact(row, ids[:answer], range(of_subject[0], of_subject[-1] + 1), ids[answer], len(of_answer))


def position_classes(subject: range, tokens: int) -> list[str]:
    """The class of each token of a prompt: one of POSITIONS, or BEFORE.

    The last token of the prompt is `last`, whatever else it is; the last one of the subject `last subject`, also where
    it is the only one. `first subsequent` follows the subject.
    """
    classes = [BEFORE] * subject.start + ["middle subject"] * len(subject)
    classes += ["first subsequent"] + ["further"] * tokens
    classes[subject.start] = "first subject"
    classes[subject.stop - 1] = "last subject"
    classes[tokens - 1] = "last"
    return classes[:tokens]


def window(layer: int, width: int, layers: int) -> range:
    """`width` layers around `layer`, cut at the ends: of 10, layer - 5 to layer + 4 (ROME's trace_important_window)."""
    return range(max(0, layer - width // 2), min(layers, layer + (width - 1) // 2 + 1))


# ---------------------------------------------------------------- model


def embedding_std(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subjects: list[str]) -> float:
    """Standard deviation over all elements of all subjects' token embeddings (ROME's collect_embedding_std).

    Each subject is tokenised by itself, without special tokens; one that occurs twice counts twice.
    """
    import torch

    encoded = tokenizer(subjects, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([token for subject in encoded for token in subject])
    weight = model.get_input_embeddings().weight.detach()
    return float(weight[ids.to(weight.device)].double().std())


def clean_run(model: PreTrainedModel, fact: Fact) -> Clean:
    """The undisturbed run; UserError when the model is not made of Llama's parts."""
    import torch

    outputs: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}

    def keep(kind: str) -> Callable[[Module, Any, Any], None]:
        return lambda module, inputs, output: outputs[kind].append(_first(output)[0].clone())

    modules = _modules(model)
    hooks = [(block, keep("hidden")) for block in modules["hidden"]]
    hooks += [(module, keep(kind)) for kind in ("mlp", "attention") for module in modules[kind]]
    with torch.no_grad(), _hooked(hooks):
        logits = model(input_ids=torch.tensor([fact.ids], device=model.device), use_cache=False).logits[0, -1]
        probability = float(logits.float().softmax(-1)[fact.answer])
        again = float(_probability(model, outputs["hidden"][-1][None, -1], fact.answer))
    if abs(again - probability) > 1e-4:
        raise _unlike_llama(model, "its logits are not those of its last layer's normalised output")
    _refuse_other_layers(model, fact, outputs["hidden"])
    return Clean(int(logits.argmax()), probability, outputs)


def _refuse_other_layers(model: PreTrainedModel, fact: Fact, hidden: list[Tensor]) -> None:
    """UserError when a layer, given the states below it, a causal mask and the rotary embeddings, does not say what it
    said in the model: one of a shorter window, or under scaled embeddings. hidden: (tokens x hidden) of each layer."""
    import torch

    with torch.no_grad():
        below = model.get_input_embeddings()(torch.tensor([fact.ids], device=model.device))
        try:
            surroundings = _surroundings(model, 0, len(fact.ids))
        except TypeError:
            raise _unlike_llama(model, "its rotary embeddings differ from layer to layer") from None
        allowed = 1e-4 if below.dtype == torch.float32 else 2e-2
        for layer, block in enumerate(_modules(model)["hidden"]):
            again = _first(block(below, **surroundings))[0]
            if (again - hidden[layer]).norm() > allowed * hidden[layer].norm():
                raise _unlike_llama(model, f"layer {layer} by itself does not say what it says in the model")
            below = hidden[layer][None]


def effects(
    model: PreTrainedModel, fact: Fact, clean: Clean, noise: np.ndarray, width: int, batch_size: int
) -> Effects:
    """Effects of all restorations of one fact.

    noise: samples x subject tokens x hidden, added to the subject's embeddings as it is. width: of the window of
    layers. At most `batch_size` sequences pass a layer at once.
    """
    import numpy as np
    import torch

    layers, tokens = len(clean.outputs["hidden"]), len(fact.ids)
    todo = [Restoration("hidden", layer, range(layer, layer + 1)) for layer in range(layers)]
    todo += [Restoration(kind, at, window(at, width, layers)) for kind in ("mlp", "attention") for at in range(layers)]
    todo.sort(key=lambda restoration: restoration.window.start)
    gained = np.zeros((len(KINDS), tokens, layers))
    corrupted_sum = 0.0
    with torch.no_grad():
        for some in np.array_split(noise, -(-len(noise) // batch_size)):
            corrupted = _corrupted_run(model, fact, clean, torch.from_numpy(some))
            corrupted_sum += float(corrupted.probability.double().sum())
            at_once = max(1, batch_size // len(some))
            for token in range(fact.subject.start, tokens):
                for begin in range(0, len(todo), at_once):
                    runs = todo[begin : begin + at_once]
                    last = _restored(model, clean, corrupted, token, runs)
                    gain = (_probability(model, last, fact.answer) - corrupted.probability.repeat(len(runs))).double()
                    sums = gain.view(len(runs), -1).sum(1).tolist()
                    for restoration, value in zip(runs, sums, strict=True):
                        gained[KINDS.index(restoration.kind), token, restoration.layer] += value
    return Effects(clean.probability, corrupted_sum / len(noise), gained / len(noise))


def _corrupted_run(model: PreTrainedModel, fact: Fact, clean: Clean, noise: Tensor) -> Corrupted:
    """The runs with noise (samples x subject tokens x hidden), and each layer with each of its modules restored."""
    import torch
    from transformers import DynamicCache

    embeddings = model.get_input_embeddings()(torch.tensor([fact.ids], device=model.device)).repeat(len(noise), 1, 1)
    embeddings[:, fact.subject.start : fact.subject.stop] += noise.to(embeddings)
    modules, cache, hidden = _modules(model), DynamicCache(), []
    keep = [
        (block, lambda module, inputs, output: hidden.append(_first(output).clone())) for block in modules["hidden"]
    ]
    with _hooked(keep):
        model.base_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
    restored = {"hidden": [output[None] for output in clean.outputs["hidden"]], "mlp": [], "attention": []}
    surroundings = _surroundings(model, 0, len(fact.ids))
    for layer, block in enumerate(modules["hidden"]):
        below = hidden[layer - 1] if layer else embeddings
        for kind in ("mlp", "attention"):
            with _hooked([(modules[kind][layer], _put(slice(None), slice(None), clean.outputs[kind][layer]))]):
                restored[kind].append(_first(block(below, **surroundings)))
    return Corrupted(
        _probability(model, hidden[-1][:, -1], fact.answer),
        hidden,
        [layer.keys for layer in cache.layers],
        [layer.values for layer in cache.layers],
        restored,
    )


def _restored(
    model: PreTrainedModel, clean: Clean, corrupted: Corrupted, token: int, runs: list[Restoration]
) -> Tensor:
    """Outputs of the last layer at the last token, (runs x samples) x hidden.

    runs: restorations at `token`, sorted by where their windows start. The batch grows from layer to layer: a
    restoration's rows, one for each sample, enter behind the first layer of its window.
    """
    import torch

    samples, tokens, _ = corrupted.hidden[0].shape
    modules, surroundings = _modules(model), _surroundings(model, token, tokens)
    states = corrupted.hidden[0].new_empty(0, tokens - token, corrupted.hidden[0].shape[-1])
    entered = 0
    for layer, block in enumerate(modules["hidden"]):
        if entered:
            hooks = []
            for kind in ("mlp", "attention"):
                rows = [i for i, run in enumerate(runs[:entered]) if run.kind == kind and layer in run.window]
                if rows:
                    chosen = torch.tensor(rows, device=states.device)[:, None] * samples
                    chosen = (chosen + torch.arange(samples, device=states.device)).flatten()
                    hooks.append((modules[kind][layer], _put(chosen, 0, clean.outputs[kind][layer][token])))
            before = _Before(corrupted.keys[layer][:, :, :token], corrupted.values[layer][:, :, :token], entered)
            with _hooked(hooks):
                states = _first(block(states, past_key_values=before, **surroundings))
        new = [run for run in runs[entered:] if run.window.start == layer]
        if new:
            rows = corrupted.hidden[layer][:, token:].repeat(len(new), 1, 1)
            rows[:, 0] = torch.cat([corrupted.restored[run.kind][layer][:, token].expand(samples, -1) for run in new])
            states = torch.cat([states, rows])
            entered += len(new)
    return states[:, -1]


class _Before:
    """What a layer takes for its cache: puts kept keys and values of the tokens before in front of the new ones."""

    def __init__(self, keys: Tensor, values: Tensor, runs: int):
        self.keys, self.values = (kept.repeat(runs, 1, 1, 1) for kept in (keys, values))

    def update(self, keys: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        import torch

        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


def _surroundings(model: PreTrainedModel, begin: int, end: int) -> dict:
    """What a layer needs beside the states of the tokens begin to end - 1: causal mask and rotary embeddings."""
    import torch

    weight = model.get_input_embeddings().weight
    mask = torch.full((end - begin, end), -torch.inf, device=weight.device).triu(begin + 1)
    positions = torch.arange(begin, end, device=weight.device)[None]
    return {
        "attention_mask": mask[None, None],
        "position_ids": positions,
        "position_embeddings": model.base_model.rotary_emb(weight, position_ids=positions),
    }


def _modules(model: PreTrainedModel) -> dict[str, list[Module]]:
    """kind -> the module of each layer whose output is restored; UserError when there are none."""
    try:
        blocks = list(model.base_model.layers)
        found = {"mlp": [block.mlp for block in blocks], "attention": [block.self_attn for block in blocks]}
        _ = model.base_model.norm, model.base_model.rotary_emb
    except AttributeError as error:
        raise _unlike_llama(model, str(error)) from None
    return {"hidden": blocks} | found


def _unlike_llama(model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"{model.config.name_or_path}: causal tracing knows models made like Olmo2 and Llama only, this one is not "
        f"({why}); leave out its trace."
    )


def _probability(model: PreTrainedModel, states: Tensor, answer: int) -> Tensor:
    """Probability of the token `answer` after the last layer's output `states` (rows x hidden), one for each row."""
    logits = model.get_output_embeddings()(model.base_model.norm(states))
    return logits.float().softmax(-1)[:, answer]


def _first(output: Any) -> Tensor:
    """A module's output, of attention without the weights that come with it."""
    return output[0] if isinstance(output, tuple) else output


def _put(rows: Tensor | slice, tokens: int | slice, state: Tensor) -> Callable[[Module, Any, Any], None]:
    """A hook that overwrites a module's output (rows x tokens x hidden) there."""

    def hook(module: Module, inputs: Any, output: Any) -> None:
        _first(output)[rows, tokens] = state

    return hook


@contextlib.contextmanager
def _hooked(hooks: list[tuple[Module, Callable[[Module, Any, Any], None]]]) -> Iterator[None]:
    """Forward hooks (module, function) for the duration of the block."""
    handles = [module.register_forward_hook(function) for module, function in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------- tables


def average(values: np.ndarray) -> dict[str, np.ndarray]:
    """aie, stderr, low and high over the first axis, facts.

    The interval is Student's t of the mean: effects lie between -1 and 1, so a mean over the usual hundreds of facts
    is normal enough, and nothing is drawn. Of one fact there is no error: NaN.
    """
    import numpy as np
    from scipy.stats import t

    count = len(values)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full_like(mean, np.nan)
    reach = error * t.ppf(0.975, count - 1) if count > 1 else error
    return {"aie": mean, "stderr": error, "low": mean - reach, "high": mean + reach}


def _write_trace(path: Path, used: list[Fact], measured: list[Effects]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [*POSITIONS, BEFORE]
    columns: dict[str, list] = {name: [] for name in ("fact", "kind", "position", "token", "layer", "effect")}
    columns |= {"clean": [], "corrupted": []}
    for fact, found in zip(used, measured, strict=True):
        kinds, tokens, layers = np.indices(found.effect.shape, dtype=np.int32).reshape(3, -1)
        classes = np.array([names.index(name) for name in position_classes(fact.subject, len(fact.ids))])
        columns["fact"].append(np.full(kinds.shape, fact.row))
        columns["kind"].append(kinds)
        columns["position"].append(classes[tokens])
        columns["token"].append(tokens)
        columns["layer"].append(layers)
        columns["effect"].append(found.effect.reshape(-1))
        columns["clean"].append(np.full(kinds.shape, found.clean))
        columns["corrupted"].append(np.full(kinds.shape, found.corrupted))
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    whole["kind"] = pa.array(KINDS).take(pa.array(whole["kind"]))
    whole["position"] = pa.array(names).take(pa.array(whole["position"]))
    pq.write_table(pa.table(whole), path, compression="zstd")


def _write_aie(path: Path, used: list[Fact], measured: list[Effects]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for position in POSITIONS:
        values = []
        for fact, found in zip(used, measured, strict=True):
            classes = position_classes(fact.subject, len(fact.ids))
            tokens = [token for token, name in enumerate(classes) if name == position]
            if tokens:
                values.append(found.effect[:, tokens].mean(1))
        if values:
            means = average(np.stack(values))
            kinds, layers = np.indices(means["aie"].shape).reshape(2, -1)
            columns = {
                "kind": pa.array(KINDS).take(pa.array(kinds)),
                "position": pa.array([position] * len(kinds)),
                "layer": layers,
            }
            columns |= {name: pa.array(value.reshape(-1), from_pandas=True) for name, value in means.items()}
            tables.append(pa.table(columns | {"facts": np.full(len(kinds), len(values))}))
    whole = pa.concat_tables(tables)
    order = np.argsort([KINDS.index(kind) for kind in whole["kind"].to_pylist()], kind="stable")
    pq.write_table(whole.take(order), path, compression="zstd")
