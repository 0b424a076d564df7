"""What the documents tell a newcomer to type works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Result, run_folder
from layouts import write_cifar100, write_fashion_mnist, write_image_folder

Command = Callable[..., Result]
ROOT = Path(__file__).parents[1]


def code(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def commands(document: str) -> list[list[str]]:
    lines = [line for block in code(document, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python run.py")]


COMMANDS = {" ".join(arguments): arguments for arguments in commands("README.md")}


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_are_valid(sslpl: Command, tmp_path: Path, line: str) -> None:
    import numpy as np

    arguments = [argument for argument in COMMANDS[line] if not argument.startswith("dataset.root=")]
    arguments = [str(ROOT / argument) if argument == "multirun_sweeps" else argument for argument in arguments]
    written = {"cifar100": write_cifar100, "image_folder": write_image_folder}
    write = next((write for name, write in written.items() if name in line), write_fashion_mnist)
    write(tmp_path / "files", 240, 20, np.random.default_rng(0))
    small = ["budget.initial=16", "budget.per_cycle=8", "budget.cycles=2", "budget.candidates=60"]
    if any("-cn" in argument for argument in arguments):  # the sweep as it is, its budgets being the methods'
        small = []
    extra = (
        []
        if line == "--help"
        else [*small, "runtime.dry_run=true", "tracker=none", f"dataset.root={tmp_path / 'files'}"]
    )
    if "-cn" in line:
        extra = [argument for argument in extra if argument != "tracker=none"]
        few = "hydra.sweeper.params={seed: '0', method: 'scal,full'}"
        extra.append("hydra.sweeper.n_trials=2" if "optuna" in line else few)
    done = sslpl(*arguments, *extra)
    assert done.code == 0, done.err


def test_the_readme_names_the_commands_of_the_makefile() -> None:
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
    (tests,) = re.findall(r"-m (pytest.*)", makefile)
    assert f"`python -m {tests}`" in readme
    for target in re.findall(r"make (\w+)", readme):
        assert f"\n{target}:" in makefile


def test_the_documents_link_to_files_that_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def test_the_readme_names_every_option() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        if path.parent.name not in ("hydra", "runtime"):
            assert re.search(rf"\b{path.stem}\b", readme), f"{path.parent.name}={path.stem}"


def test_a_strategy_from_outside_runs_as_the_guide_says(
    sslpl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    function, *_ = code("CONTRIBUTING.md", "python")
    config, preset = code("CONTRIBUTING.md", "yaml")
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
    exec(names + code("CONTRIBUTING.md", "python")[1], namespace)
    logits = torch.tensor([[4.0, 0.0], [0.1, 0.0]])
    target, weight = namespace["clear_of_the_second"](logits)
    assert weight.tolist() == [1, 0]
    torch.testing.assert_close(target, logits.softmax(dim=1))
    method, index = namespace["Agreeing"](num_classes=2, num_images=3), torch.tensor([2, 0])
    assert [method(values, index).weight.tolist() for values in (logits, logits, logits.flip(1))] == [
        [0, 0], [1, 1], [0, 0],
    ]  # fmt: skip
