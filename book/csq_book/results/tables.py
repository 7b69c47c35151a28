"""The tables of a page: its runs, its verdicts, and published figures beside ours. Every cell is text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from csq_mini.experiments.plans import METHODS, PROFILES, plan

from .verdicts import Sample, Verdict, best_rows, judge, sample, select, weight_bits

if TYPE_CHECKING:
    import pandas

NAMES: Mapping[str, str] = {
    "csq": "CSQ", "float": "float", "no-masks": "without masks", "no-finetune": "without finetune",
    "one-rate": "one learning rate for all", "no-growth": "without growth", "unweighted": "unweighted budget",
    "free-masks": "CSQ with free masks", "no-recalibration": "without recalibration", "planes": "fixed planes",
    "round": "rounding alone", "ste": "straight-through", "lsq": "LSQ", "learned-bits": "learned step and range",
    "bsq": "BSQ",
}  # fmt: skip
"""What pages call the methods of :func:`csq_mini.reproduce`."""

FORMATS = {"accuracy": "{:.2f}%", "images_per_second": "{:,.0f} images/s", "seconds": "{:,.0f} s"}


class Setting(NamedTuple):
    """What runs have in common that differ only in their seed."""

    profile: str
    epochs: int
    method: str
    target: float | None
    activation_bits: int | None
    started: bool = False

    def __str__(self) -> str:
        parts = [NAMES[self.method]]
        parts += [f"target {self.target:g}"] if self.target is not None else []
        parts += [f"{self.activation_bits:g}-bit activations"] if self.activation_bits is not None else []
        parts += ["from a float checkpoint"] if self.started else []
        return ", ".join(parts)

    def order(self) -> tuple[Any, ...]:
        """Sort key: the longest profile first, then as a reader would look for a run."""
        return (
            -list(PROFILES).index(self.profile), self.epochs, self.method != "float", list(METHODS).index(self.method),
            self.target or 0, -(self.activation_bits or 32), self.started,
        )  # fmt: skip


def show(table: pandas.DataFrame) -> Any:
    """The table as HTML: no text cut off, no index, no empty columns."""
    import pandas
    from IPython.display import HTML

    table = table.loc[:, (table != "").any()]
    with pandas.option_context("display.max_colwidth", None):
        return HTML(table.to_html(index=False, border=0, justify="left", classes="results"))


def profiles(model: str, data: str) -> pandas.DataFrame:
    """What each profile is for, and how it changes the recipe of a network on a data set."""
    import pandas

    fields = ("search_epochs", "finetune_epochs", "batch_size", "lr", "logit_lr")
    lines = []
    for name, profile in PROFILES.items():
        recipe = plan("csq", model, data, 2.0, 0, name).to_dict()
        recipe["logit_lr"] = recipe["logit_lr"] or 10 * recipe["lr"]  # what None means
        numbers = {field.replace("_", " "): f"{recipe[field]:g}" for field in fields}
        lines.append(
            {"profile": name, "images": str(profile.images.get(model) or "all"), **numbers, "for": profile.about}
        )
    return pandas.DataFrame(lines)


def runs(book: Mapping[str, Any], name: str, rows: pandas.DataFrame) -> pandas.DataFrame:
    """The runs of a page, done and planned, one line for each setting.

    Args:
        book: from :func:`read_published`. name: the page's name in it. rows: all rows of results.
    """
    import pandas

    page = book["pages"][name]
    planned = dict(_planned(page))
    found = _by_setting(select(rows, page["rows"]))
    found = {key: group for key, group in found.items() if key.method in {p.method for p in planned}}
    missing = {key: rows[:0] for key in planned if not {key, key._replace(started=True)} & set(found)}
    lines = [
        {"run": str(key), "profile": f"{key.profile}, {key.epochs} epochs"}
        | _line(group, planned.get(key._replace(started=False), 0))
        for key, group in sorted((found | missing).items(), key=lambda item: item[0].order())
    ]
    return pandas.DataFrame(lines)


def _planned(page: Mapping[str, Any]) -> Iterator[tuple[Setting, int]]:
    """The settings that ``make reproduce`` runs for a page, each with its number of seeds."""
    for profile, plans in page["runs"].items():
        for p in plans:
            for method, target, bits in product(p["methods"], p["targets"], p.get("activations", [None])):
                model, data = page["rows"]["model"], page["rows"]["data"]
                recipe = plan(method, model, data, target, 0, profile, activation_bits=bits, epochs=p.get("epochs"))
                epochs = recipe.search_epochs + recipe.finetune_epochs
                yield Setting(profile, epochs, method, recipe.target, bits), len(p["seeds"])


def _by_setting(rows: pandas.DataFrame) -> dict[Setting, pandas.DataFrame]:
    fields = rows[list(Setting._fields)].astype(object).itertuples(index=False)
    keys = [Setting._make(None if value != value else value for value in values) for values in fields]
    return {key: rows[[key == other for other in keys]] for key in set(keys)}


def _line(group: pandas.DataFrame, planned: int) -> dict[str, str]:
    accuracy = sample(group)
    if not accuracy.n:
        return {"accuracy": "not run", "spread": "", "n": _count(0, planned)} | dict.fromkeys(
            ("bits", "smaller", "time", "hardware"), ""
        )
    return {
        "accuracy": _value(accuracy),
        "spread": spread(accuracy),
        "n": _count(accuracy.n, planned),
        "bits": f"{group['paper_bits'].mean():.2f}",
        "smaller": f"{(group['original_bytes'] / group['bytes']).mean():.1f} times",
        "time": duration(group["seconds"].mean()),
        "hardware": "; ".join(sorted(set(group["hardware"]))),
    }


def spread(found: Sample, measure: str = "accuracy") -> str:
    """The standard deviation over the seeds, or "one seed"."""
    if found.spread is None:
        return "one seed" if found.n else ""
    return f"{found.spread:.2f}" if measure == "accuracy" else f"{found.spread:,.0f}"


def duration(seconds: float) -> str:
    """Seconds up to two minutes, minutes above."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def verdicts(book: Mapping[str, Any], name: str, rows: pandas.DataFrame) -> pandas.DataFrame:
    """What a page claims, what its runs gave, and whether that is enough; arguments as in :func:`runs`."""
    import pandas

    page = book["pages"][name]
    return pandas.DataFrame([_verdict(judge(claim, page, rows), book["paper"]) for claim in page["claims"]])


def _verdict(found: Verdict, paper: str) -> dict[str, str]:
    claim, ours, measure = found.claim, found.ours, found.measure
    return {
        "what": claim["what"],
        "asked": _asked(claim, FORMATS[measure]),
        "verdict": found.word,
        "ours": _value(ours, measure),
        "spread": spread(ours, measure),
        "n": _count(ours.n, claim["seeds"]),
        "compared with": f"{claim['named']}: {_value(found.beside, measure)}" if found.beside else "",
        "difference": _difference(found.difference, measure),
        "CSQ's paper": paper if claim["rows"]["method"] == "csq" and measure == "accuracy" else "",
    }


def _value(found: Sample, measure: str = "accuracy") -> str:
    return FORMATS[measure].format(found.mean) if found.n else "not run"


def _count(n: int, wanted: int) -> str:
    return f"{n} of {wanted}" if n < wanted else str(n)


def _difference(found: float | None, measure: str = "accuracy") -> str:
    return "" if found is None else f"{found:+.2f}" if measure == "accuracy" else f"{found:.2f} times"


def _asked(claim: Mapping[str, Any], form: str) -> str:
    texts = {"at_least": f"at least {form}", "at_most": f"at most {form}", "within": "at most {:g} points below",
             "ratio": "at least {:g} times"}  # fmt: skip
    return next((text.format(claim[field]) for field, text in texts.items() if field in claim), "shown only")


def comparison(book: Mapping[str, Any], name: str, rows: pandas.DataFrame) -> pandas.DataFrame:
    """The published figures of a page, each beside our nearest runs; arguments as in :func:`runs`."""
    import pandas

    page, figures = book["pages"][name], {figure["id"]: figure for figure in book["figures"]}
    return pandas.DataFrame([_compared(figures[key], page, rows, book["paper"]) for key in page["figures"]])


def _compared(figure: Mapping[str, Any], page: Mapping[str, Any], rows: pandas.DataFrame, paper: str) -> dict[str, str]:
    near = best_rows(select(rows, {**page["rows"], **figure["ours"]})) if "ours" in figure else rows[:0]
    ours, settings = sample(near), list(_by_setting(near)) if len(near) else []
    return {
        "published": figure["what"],
        "weight bits": _bits(weight_bits(figure)),
        "activation bits": _bits(figure["activation_bits"]),
        "figure": _figure(figure, paper),
        "ours": _value(ours) if "ours" in figure else "no run near" if figure["value"] else "",
        "difference": _difference(ours.mean - figure["value"] if ours.n else None),
        "spread": spread(ours),
        "n": str(ours.n or ""),
        "our runs": "; ".join(f"{s}, {s.epochs} epochs ({s.profile})" for s in settings),
        "source": figure["source"],
    }


def published(book: Mapping[str, Any]) -> pandas.DataFrame:
    """All published figures of the book, with their sources."""
    import pandas

    lines = [
        {"what": figure["what"], "model": figure["model"] or "not stated", "data": figure["data"],
         "weight bits": _bits(weight_bits(figure)), "activation bits": _bits(figure["activation_bits"]),
         "measure": figure["measure"], "figure": _figure(figure, book["paper"]), "source": figure["source"]}
        for figure in book["figures"]
    ]  # fmt: skip
    return pandas.DataFrame(lines)


def _bits(bits: float | None) -> str:
    return "not stated" if bits is None else "float" if bits == 32 else f"{bits:.3g}"


def _figure(figure: Mapping[str, Any], paper: str) -> str:
    value, form = figure["value"], "{:.2f}%" if figure["measure"] == "accuracy" else "{:,.0f}"
    return paper if value is None else form.format(value)
