"""The commands in the documents work, and everything that the documents name exists."""

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from conftest import TINY, Result, run_folder
from hydra.core.global_hydra import GlobalHydra
from layouts import write_cifar10, write_cifar100, write_embeddings, write_fashion_mnist, write_image_folder
from test_experiments import values_of

Command = Callable[..., Result]
ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
EXECUTED = ("docs/label.md", "docs/label_files.md")  # by check_labeling.py and check_campaign.py


def text(document: str) -> str:
    return (ROOT / document).read_text()


def code(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(document), flags=re.DOTALL | re.MULTILINE)


def commands(document: str) -> list[str]:
    """Returns the commands of a document: the lines of its Bash blocks, and code spans that are complete commands."""
    blocks = [] if document in EXECUTED else code(document, "bash")
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text(document), flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines += [span for span in spans if span.startswith(("python ", "make ", "pip ")) and not placeholder(span)]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def placeholder(span: str) -> bool:
    """True if a command has placeholders."""
    patterns = r"\.\.\.|\[[^\]]*[A-Z]|\b(RUN|FOLDER)\b|sslpl\.\w+ --\w+$"
    return bool(re.search(patterns, span))


COMMANDS = sorted({line for document in DOCUMENTS for line in commands(document)})


def starting(*words: str) -> list[str]:
    return [line for line in COMMANDS if line.startswith(words)]


def first_values(arguments: list[str]) -> list[str]:
    """Returns the override that reduces a sweep file to one job, with the first value of each key."""
    sweep = yaml.safe_load((ROOT / "multirun_sweeps" / f"{arguments[arguments.index('-cn') + 1]}.yaml").read_text())
    options = {key: values_of(key, str(node))[0] for key, node in sweep["hydra"]["sweeper"]["params"].items()}
    return ["hydra.sweeper.params={" + ", ".join(f"{key}: '{value}'" for key, value in options.items()) + "}"]


def small(line: str, folder: Path) -> list[str]:
    """Returns the arguments of a run's command for a small dry run on generated files.

    A sweep tries the first value of each key; test_experiments.py checks every value.
    """
    import numpy as np

    arguments = shlex.split(line[line.index("run.py") + len("run.py") :])
    arguments = [argument for argument in arguments if not argument.startswith("dataset.root=")]
    arguments = [str(ROOT / argument) if argument == "multirun_sweeps" else argument for argument in arguments]
    if {"--help", "--cfg"} & set(arguments):
        return arguments
    if any(argument.startswith("hydra/launcher=") for argument in arguments):
        return [*(argument.partition(",")[0] for argument in arguments if argument != "-m"), "--cfg", "job"]
    written = {"cifar100": write_cifar100, "cifar10": write_cifar10, "image_folder": write_image_folder}
    if "embeddings" in " ".join(arguments):
        arguments = [argument for argument in arguments if not argument.startswith(("dataset.file=", "seed="))]
        write_embeddings(folder / "embeddings.npz", 240, 20, np.random.default_rng(0))
        extra = [f"dataset.file={folder / 'embeddings.npz'}", "tracker=none", "runtime.dry_run=true"]
        return [*arguments, *extra, *(first_values(arguments) if "-cn" in arguments else ())]
    write = next((write for name, write in written.items() if name in line), write_fashion_mnist)
    images = 1300 if "-cn" in arguments else 240  # a sweep file has a budget of its own
    write(folder / "files", images, 20, np.random.default_rng(0))
    extra = ["runtime.dry_run=true", "training.batch_size=8", f"dataset.root={folder / 'files'}"]
    if "-cn" not in arguments:
        extra += ["budget.initial=16", "budget.per_cycle=8", "budget.cycles=2", "budget.candidates=60", "tracker=none"]
    elif "optuna" in arguments:
        extra += ["hydra.sweeper.n_trials=2"]
    else:
        extra += first_values(arguments)
    return [*arguments, *extra]


@pytest.mark.slow
@pytest.mark.parametrize("line", starting("python run.py", "torchrun"))
def test_the_commands_that_run_are_valid(sslpl: Command, tmp_path: Path, line: str) -> None:
    done = sslpl(*small(line, tmp_path))
    assert done.code == 0, done.err


@pytest.mark.parametrize("line", starting("python -m sslpl.report", "python -m sslpl.predict"))
def test_the_commands_that_read_runs_are_valid(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, _, module, *arguments = shlex.split(line)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit):
        runpy.run_module(module, run_name="__main__")
    assert "no such folder" in capsys.readouterr().err  # after the arguments were accepted


@pytest.mark.parametrize("line", starting("python -m sslpl.pretrain"))
def test_the_commands_that_pretrain_are_valid(
    line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numpy as np

    write = write_cifar10 if "dataset=cifar10" in line else write_fashion_mnist
    write(tmp_path / "files", 240, 20, np.random.default_rng(0))
    _, _, module, *arguments = shlex.split(line)
    arguments = [argument for argument in arguments if not argument.startswith("dataset.root=")]
    arguments += [f"dataset.root={tmp_path / 'files'}", "runtime.dry_run=true", "pretraining.batch_size=32"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code, capfd.readouterr().err


@pytest.mark.parametrize("line", [line for line in starting("python -m sslpl.embed") if "--output" in line])
def test_the_commands_that_embed_are_valid(
    line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, module, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--cfg", "job"])  # its weights would be downloaded
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code, capfd.readouterr().err
    (weights,) = [argument.partition("=")[2] for argument in arguments if argument.startswith("backbone.weights=")]
    assert f"weights: {weights}\n" in capfd.readouterr().out


@pytest.mark.parametrize("line", starting("python tests/", "python benchmarks/"))
def test_the_scripts_have_the_options_that_are_named(line: str) -> None:
    _, script, *arguments = shlex.split(line)
    source = text(script)
    options = [argument for argument in arguments if argument.startswith("--")]
    shared = "".join(path.read_text() for path in (ROOT / script).parent.glob("*.py"))
    assert all(f'"{option}"' in (source if f'"{option}"' in source else shared) for option in options)


@pytest.mark.parametrize("line", starting("pip "))
def test_the_extras_that_are_installed_exist(line: str) -> None:
    extras = metadata("sslpl").get_all("Provides-Extra") or []
    declared = re.findall(r"^(\w+) = \[", text("pyproject.toml"), flags=re.MULTILINE)
    for named in re.findall(r"\[([\w,]+)\]", line):
        assert set(named.split(",")) <= {*extras, *declared}, line


@pytest.mark.parametrize("line", starting("make "))
def test_the_targets_that_are_made_exist(line: str) -> None:
    (target,) = (word for word in shlex.split(line)[1:] if "=" not in word)
    assert f"\n{target}:" in text("Makefile")


def test_no_command_is_unchecked() -> None:
    checked = ("python run.py", "python -m sslpl.", "python -m pytest", "python tests/", "python benchmarks/")
    assert not [
        line for line in COMMANDS if not line.startswith((*checked, "torchrun", "pip ", "make ", "wandb sweep "))
    ]
    for line in starting("wandb sweep "):
        assert (ROOT / shlex.split(line)[-1]).is_file()


def test_the_readme_is_short_and_names_the_command_of_the_tests() -> None:
    tests = re.findall(r"-m (pytest.*)", text("Makefile"))[0]  # of make test; make check runs the slow ones
    assert f"python -m {tests}" in text("README.md")
    assert len(text("README.md").splitlines()) <= 125


def test_the_documents_link_to_files_that_exist() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text(document)):
            if not target.startswith("api/"):  # generated
                assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def test_every_page_opens_with_what_it_is_for_and_is_in_the_contents() -> None:
    index, navigation = text("docs/index.md"), text("mkdocs.yml")
    for path in (ROOT / "docs").glob("*.md"):
        title, blank, purpose, *_ = path.read_text().splitlines()
        assert (title[:2], blank, purpose[:10]) == ("# ", "", "This page "), path.name
        assert path.name in navigation
        assert path.name == "index.md" or f"({path.name})" in index


def test_the_table_of_options_names_every_option() -> None:
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (.*?) \|", text("docs/options.md"), flags=re.MULTILINE))
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        group = path.parent.relative_to(ROOT / "conf").as_posix()
        if group not in ("hydra/help", "runtime"):
            assert re.search(rf"\b{path.stem}\b", rows[group]), f"{group}={path.stem}"


def test_the_readme_and_the_guide_have_the_same_strategy() -> None:
    for language in ("python", "yaml"):
        assert code("README.md", language)[0] == code("docs/contribute.md", language)[0]


def test_a_strategy_from_outside_runs_as_the_guide_says(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    function, *_ = code("docs/contribute.md", "python")
    config, preset = code("docs/contribute.md", "yaml")
    (tmp_path / "my_strategies.py").write_text(function)
    for name, text in (("query/lowest_logit", config), ("method/clustered_entropy", preset)):
        path = tmp_path / "my_conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = sslpl("--config-dir", "my_conf", *TINY, "method=random", "query=lowest_logit")
    assert done.code == 0, done.err
    assert run_folder().parent.name == "random+query=lowest_logit"
    done = sslpl("--config-dir", "my_conf", *TINY, "method=clustered_entropy", "runtime.output_dir=preset")
    assert done.code == 0, done.err
    assert run_folder(Path("preset")).parent.name == "clustered_entropy"


def test_the_ssl_methods_of_the_guide_work() -> None:
    import torch

    namespace: dict = {}
    names = (
        "import torch\nfrom torch import Tensor, nn\nfrom torch.nn.functional import one_hot\n"
        "from sslpl.types import PseudoLabel, Share\n"
    )
    exec(names + code("docs/contribute.md", "python")[1], namespace)
    logits = torch.tensor([[4.0, 0.0], [0.1, 0.0]])
    target, weight = namespace["clear_of_the_second"](logits)
    assert weight.tolist() == [1, 0]
    torch.testing.assert_close(target, logits.softmax(dim=1))
    method, index = namespace["Agreeing"](num_classes=2, num_images=3), torch.tensor([2, 0])
    assert [method(values, index).weight.tolist() for values in (logits, logits, logits.flip(1))] == [
        [0, 0], [1, 1], [0, 0],
    ]  # fmt: skip
