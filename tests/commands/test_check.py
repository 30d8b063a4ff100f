"""`probcrowd check`: its files, its exit status on data that must fail, and the figures of every model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from example_covariates import annotations_for
from matplotlib import pyplot as plt
from scipy.special import entr

from probcrowd.commands.app import main
from probcrowd.data.annotations import Annotations
from probcrowd.data.files import anesthesia
from probcrowd.figures.base import short
from probcrowd.figures.posterior import annotators_figure, posterior_figures
from probcrowd.inference.checks.check import Checked, check_posterior
from probcrowd.inference.posterior import sample as posterior
from probcrowd.inference.posterior.sample import sample_posterior
from probcrowd.inference.posterior.tables import annotator_table, item_table
from probcrowd.inference.posterior.tree import array, dataset, load_posterior
from probcrowd.models.catalogue import MODELS
from probcrowd.runs import check
from probcrowd.runs.report import make_report

SCRIPT, FORMULA = "<script>alert(1)</script>", "=1+1"
FEW = ("--warmup", 200, "--draws", 200, "--duplicates", "count")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def patients() -> pd.DataFrame:
    """The anaesthesia table with an annotator and an item whose names are attacks."""
    frame = anesthesia().to_frame().astype(str)
    return frame.replace({"annotator": {"2": SCRIPT}, "item": {"3": FORMULA}})


@dataclass(frozen=True)
class Run:
    """One run of the command: its result, its folder and the posteriors that it sampled, by model."""

    result: Result
    out: Path
    trees: dict[str, xr.DataTree]
    verdict: dict

    @property
    def tree(self) -> xr.DataTree:
        return self.trees["dawid_skene"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("check")
    patients().to_csv(folder / "labels.csv", index=False)
    pd.DataFrame({"item": ["1", "2"], "label": ["1", "3"]}).to_csv(folder / "known.csv", index=False)
    pd.DataFrame({"item": ["2", "4", "5"], "label": ["1", "2", "2"]}).to_csv(folder / "gold.csv", index=False)
    trees = {}

    def sample(annotations: Annotations, model: str, **options: Any) -> xr.DataTree:
        trees[model] = sample_posterior(annotations, model, **options)
        return trees[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "sample_posterior", sample)
        given = ["--known", folder / "known.csv", "--gold", folder / "gold.csv", "--compare", "multinomial"]
        result = invoke(folder / "labels.csv", "--out", folder / "out", *FEW, *given)
    assert result.exit_code in (0, 3, 4), result.output
    return Run(result, folder / "out", trees, json.loads((folder / "out" / "verdict.json").read_text()))


def test_the_output_agrees_with_the_files(run: Run) -> None:
    assert sorted(path.name for path in run.out.iterdir()) == sorted(check.FILES)
    assert run.verdict["exit_status"] == run.result.exit_code
    assert run.result.output.splitlines()[0] == run.verdict["verdict"]
    assert all(f"{finding['name']}: " in run.result.output for finding in run.verdict["findings"])
    assert all(str(run.out / name) in run.result.output for name in check.FILES)
    assert run.verdict["model"] == "dawid_skene" and run.verdict["settings"]["draws"] == 200
    loaded = load_posterior(run.out / "posterior.nc")
    assert loaded.equals(run.tree) and loaded.attrs == run.tree.attrs


def test_items_have_their_probabilities_under_the_users_ids(run: Run) -> None:
    items = pd.read_csv(run.out / "items.csv", dtype={"item": str, "most_probable_class": str}).set_index(
        "item"
    )
    ids = list(dict.fromkeys(patients()["item"].replace(FORMULA, "'" + FORMULA)))
    assert list(items.index) == ids
    probabilities = items[["1", "2", "3", "4"]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(probabilities, array(run.tree, "responsibilities", "mean"), atol=1e-12)
    assert (items["most_probable_class"] == probabilities.idxmax(axis=1)).all()
    np.testing.assert_allclose(
        items["plug_in_confidence"], array(run.tree, "plug_in", "responsibility").max(1), atol=1e-12
    )
    assert items.loc["1", "1"] == items.loc["2", "3"] == 1  # known
    assert items.loc["4", "confidence"] < 1


def test_annotators_have_the_moments_of_their_accuracy(run: Run) -> None:
    annotators = pd.read_csv(run.out / "annotators.csv").set_index("annotator")
    assert annotators["labels"].to_dict() == patients()["annotator"].value_counts().to_dict()
    sites = dataset(run.tree, "posterior")
    confusion, prior = sites["confusion"].sel(annotator=SCRIPT).to_numpy(), sites["class_prior"].to_numpy()
    right = (np.diagonal(confusion, axis1=-2, axis2=-1) * prior).sum(-1)
    wanted = [right.mean(), right.std(), *np.quantile(right, [0.025, 0.25, 0.75, 0.975])]
    np.testing.assert_allclose(annotators.loc[SCRIPT].iloc[1:7].astype(float), wanted, atol=1e-12)


def test_gold_is_scored_without_the_items_that_the_fit_knew(run: Run) -> None:
    finding = next(each for each in run.verdict["findings"] if each["name"] == "accuracy on gold")
    best = item_table(run.tree)["most_probable_class"]
    assert finding["value"] == np.mean(
        [best["4"] == "2", best["5"] == "2"]
    )  # item 2, whose gold is another, was known
    assert "n 2 items" in finding["meaning"]


class Page(HTMLParser):
    """The tags of a page, what they fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_fetches_nothing_and_ids_are_text_in_it(run: Run) -> None:
    text = (run.out / "report.html").read_text()
    page = Page(text)
    assert page.links and all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert (
        not {"script", "link", "iframe", "object"} & set(page.tags)
        and "@import" not in text
        and "url(" not in text
    )
    assert SCRIPT in page.text and FORMULA in page.text
    assert run.verdict["verdict"] in page.text
    assert all(
        finding["name"] in page.text and finding["meaning"] in page.text
        for finding in run.verdict["findings"]
    )
    assert page.tags.count("img") == 7  # all but the energy of NUTS
    assert len(text) < 3e6


def test_models_are_compared_by_item_and_an_old_comparison_does_not_stay(run: Run, tmp_path: Path) -> None:
    comparison = pd.read_csv(run.out / "comparison.csv", index_col="model")
    assert set(comparison.index) == {"dawid_skene", "multinomial"} and (comparison["units"] == 45).all()
    elpd = next(each["meaning"] for each in run.verdict["findings"] if each["name"] == "leave-one-item-out")
    assert f"elpd {comparison.loc['dawid_skene', 'elpd']:.1f} " in elpd
    (tmp_path / "comparison.csv").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "sample_posterior", lambda *arguments, **options: run.tree)
        check.check_labels(
            Annotations.from_frame(patients(), duplicates="count"), out=tmp_path, progress=False
        )
    assert not (tmp_path / "comparison.csv").exists() and (tmp_path / "items.csv").exists()


def test_errors_are_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "labels.csv").write_text("item,annotator,label\na,x,yes\na,y,\n")
    (tmp_path / "good.csv").write_text("item,annotator,label\na,x,yes\na,y,no\n")
    (tmp_path / "columns.csv").write_text("thing,who\na,x\n")
    (tmp_path / "a file").write_text("")
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        ([tmp_path / "labels.parquet", *out], ""),
        ([tmp_path / "labels.csv", *out], "missing labels"),
        ([tmp_path / "columns.csv", *out], "label"),
        ([tmp_path / "no.csv", *out], "there is no file"),
        ([tmp_path / "good.csv", *out, "--model", "dawid"], "unknown model 'dawid'"),
        ([tmp_path / "good.csv", *out, "--compare", "dawid"], "unknown model 'dawid'"),
        (
            [tmp_path / "good.csv", *out, "--model", "mace", "--prior", "paun"],
            "unknown prior of mace 'paun': choose one of hovy, flat",
        ),
        (
            [tmp_path / "good.csv", *out, "--prior", "paun"],
            "unknown prior of dawid_skene 'paun': choose one of accurate, rater, stan, flat",
        ),
        ([tmp_path / "good.csv", *out, "--model", "prototype_crowd"], "prototype_crowd needs features"),
        ([tmp_path / "good.csv", *out, "--compare", "prototype_crowd"], "cannot be compared"),
        ([tmp_path / "good.csv", "--out", tmp_path / "a file"], "a file"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1 and message in result.output, result.output
        assert result.output.startswith("Error: ") and result.output.count("\n") == 1, result.output
    assert not (tmp_path / "out").exists()
    assert invoke(tmp_path / "good.csv").exit_code == 2


def test_without_the_extra_one_line_names_what_to_install() -> None:
    code = (
        "import sys; from probcrowd.commands.app import main; "
        "assert 'jax' not in sys.modules; sys.modules['jax'] = None; main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "check", "x.csv", "--out", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1, ran.stderr
    assert "jax" in ran.stderr and 'pip install ".[mcmc]"' in ran.stderr


def test_chains_that_disagree_are_not_passed(tmp_path: Path) -> None:
    patients().to_csv(tmp_path / "labels.csv", index=False)
    result = invoke(
        tmp_path / "labels.csv", "--out", tmp_path / "out", *FEW, "--prior", "flat", "--start", "dispersed"
    )
    assert result.exit_code == 3, result.output
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["prior"]["name"] == "flat" and set(verdict["prior"]["confusion"][0]) == {1.0}
    assert verdict["verdict"].startswith("Do not use these draws")
    failed = {
        finding["name"]: finding["meaning"] for finding in verdict["findings"] if finding["passed"] is False
    }
    assert (
        "order of the classes" in failed
        and "Chains sit in different permutations" in failed["order of the classes"]
    )
    assert 'class="verdict status3"' in (tmp_path / "out" / "report.html").read_text()


def copied_labels(share: float, items: int = 500) -> pd.DataFrame:
    """Five annotators, right with probability 0.8; the second copies a share of the first's labels."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=items)
    labels = np.where(rng.random((items, 5)) < 0.8, truth[:, None], 1 - truth[:, None])
    labels[:, 1] = np.where(rng.random(items) < share, labels[:, 0], labels[:, 1])
    item, annotator = np.indices(labels.shape)
    return pd.DataFrame({"item": item.ravel(), "annotator": annotator.ravel(), "label": labels.ravel()})


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_only_a_copying_annotator_fails_the_model(tmp_path: Path, share: float) -> None:
    copied_labels(share).to_csv(tmp_path / "labels.csv", index=False)
    result = invoke(tmp_path / "labels.csv", "--out", tmp_path / "out", "--warmup", 200, "--draws", 400)
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    passed = {finding["name"]: finding["passed"] for finding in verdict["findings"]}
    assert passed["replicated pairwise agreement"] is (share == 0)
    assert result.exit_code == (4 if share else 0), result.output


Sampled = Callable[[str], tuple[xr.DataTree, Checked, np.ndarray]]


@pytest.fixture(scope="module")
def posterior_of(run: Run) -> Sampled:
    """Return a posterior, its checks and gold: of the run, or of 10 items with ids like formulas."""
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=10)
    rows = [
        (f"$i_{i}", f"a{j}$", ["<b>", "$x^{"][label ^ (rng.random() < 0.2)])
        for i, label in enumerate(truth)
        for j in range(3)
    ]
    annotations = Annotations.from_frame(pd.DataFrame(rows, columns=["item", "annotator", "label"]))
    features = pd.DataFrame(rng.normal(size=(10, 2)) + 2 * truth[:, None], index=annotations.items)
    few = {"chains": 4, "warmup": 30, "draws": 20, "seed": 0, "progress": False}

    @cache
    def sampled(model: str) -> tuple[xr.DataTree, Checked, np.ndarray]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(posterior, "MODES_UP_TO", 0)  # other modes are in the run's trees
            given = features if MODELS[model].features else None
            tree = (
                run.trees[model]
                if model in run.trees
                else sample_posterior(
                    annotations_for(MODELS[model], annotations), model, features=given, **few
                )
            )
        gold = np.where(np.arange(len(array(tree, "constant_data", "gold"))) % 2, 0, -1)
        return tree, check_posterior(tree, seed=0, gold=gold), gold

    return sampled


# Kinds that the figures distinguish and Gibbs samples: a matrix per annotator, one for all, no class prior.
# The slow run has the others, compiled by NUTS for a minute; the walk-through of CONTRIBUTING.md runs NUTS.
KINDS = ("dawid_skene", "multinomial", "mace")


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in MODELS]
)
def test_every_model_has_figures_and_a_page(posterior_of: Sampled, model: str) -> None:
    tree, checked, gold = posterior_of(model)
    figures = posterior_figures(tree, checked, gold)
    wanted = {"chains", "items", "plug_in", "reliability", "predictive", "pareto_k"}
    wanted |= {"annotators"} if "confusion" in MODELS[model].dims else set()
    wanted |= {"energy"} if MODELS[model].gibbs is None else set()
    assert set(figures) == wanted and not plt.get_fignums()
    ids = list(dict.fromkeys(patients()["annotator"])) if len(gold) == 45 else ["a0$", "a1$", "a2$"]
    annotators = annotator_table(tree, pd.Index(ids))
    assert list(annotators.index) == ids and annotators["labels"].sum() == len(
        array(tree, "constant_data", "row_label")
    )
    assert annotators["accuracy_mean"].isna().all() == (model == "item_difficulty")
    page = Page(make_report(tree, checked, item_table(tree), annotators, gold=gold))
    assert page.tags.count("img") == len(wanted) and "b" not in page.tags


def test_figures_show_the_numbers_of_their_tables(posterior_of: Sampled) -> None:
    tree, checked, _ = posterior_of("dawid_skene")
    table = annotator_table(tree).sort_values("accuracy_mean", ascending=False)
    axis = annotators_figure(tree).axes[0]
    np.testing.assert_allclose(axis.lines[0].get_xdata(), table["accuracy_mean"])
    assert [label.get_text() for label in axis.get_yticklabels()] == [short(name, 28) for name in table.index]
    figures = posterior_figures(tree, checked)
    assert "reliability" not in figures
    widths = np.array([bar.get_width() for bar in figures["items"].axes[0].patches]).reshape(4, -1)
    np.testing.assert_allclose(widths.sum(0), 1)
    probabilities = array(tree, "responsibilities", "mean")
    chosen = np.argsort(-entr(probabilities).sum(1), kind="stable")[:20]
    np.testing.assert_allclose(widths.T, probabilities[chosen], atol=1e-12)


def test_long_names_are_distinct_and_not_rendered_as_formulas() -> None:
    assert short("plain") == "plain" and short("a\nb") == "a b" and short("$x$") == r"\$x\$"
    assert (
        short("annotator number 1234567") != short("annotator number 1234568") and len(short("x" * 99)) <= 18
    )


def test_the_first_and_last_of_a_thousand_annotators_are_shown(posterior_of: Sampled) -> None:
    small = posterior_of("dawid_skene")[0]
    many = xr.DataTree.from_dict(
        {
            name: dataset(small, name)
            .isel(annotator=np.arange(1000) % 5)
            .assign_coords(annotator=[f"w{j}" for j in range(1000)])
            for name in ("posterior", "plug_in")
        }
        | {"constant_data": dataset(small, "constant_data")}
    )
    many.attrs = small.attrs | {"num_annotators": 1000}
    figure = annotators_figure(many)
    axis = figure.axes[0]
    assert len(axis.get_yticks()) == 40 and figure.get_figheight() < 12
    assert any("960 of 1,000 annotators" in text.get_text() for text in axis.texts)
    shown = axis.lines[0].get_xdata()
    everyone = annotator_table(many)["accuracy_mean"]
    assert (
        shown[0] == everyone.max()
        and shown[-1] == everyone.min()
        and re.match(r"w\d", axis.get_yticklabels()[0].get_text())
    )
