"""A scan of all code: nothing is unpickled, and no text or archive becomes code or leaves its folder."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from workplace import PROJECT

SOURCE = PROJECT / "src" / "graftline"
FILES = [
    *sorted(file for file in SOURCE.rglob("*.py") if "pipeline" not in file.relative_to(SOURCE).parts),
    *sorted((PROJECT / "pipeline").rglob("*.py")),
]
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
# what may run code that it reads, whatever it is called with
FORBIDDEN = {
    *("pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "compile", "os.system", "os.popen"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model"),
}
METHODS = {"extractall", "unpack_archive", "load_from_checkpoint", "read_pickle"}  # of any object
MUST_SAY = {  # a call must have this argument, with this value
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "np.savez": ("allow_pickle", False),
    "np.savez_compressed": ("allow_pickle", False),
}


def flaws(code: str) -> Iterator[str]:
    """Yield what is wrong with a file's code."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            yield from (f"imports {name}" for name in names if name.partition(".")[0] in UNPICKLERS)
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {one.arg for one in node.keywords}
        given = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
        if called in FORBIDDEN or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
            yield f"calls {called}"
        if called in MUST_SAY and given.get(MUST_SAY[called][0]) is not MUST_SAY[called][1]:
            yield f"calls {called} without {MUST_SAY[called][0]}={MUST_SAY[called][1]}"
        if given.get("shell") is True:
            yield f"calls {called} by a shell"
        if given.get("weights_only") is False or given.get("allow_pickle") is True:
            yield f"calls {called} and lets it unpickle"
        resumes = isinstance(node.func, ast.Attribute) and node.func.attr == "fit" and "ckpt_path" in keywords
        if resumes and given.get("weights_only") is not True:
            yield f"calls {called} without weights_only=True"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_nothing_unpickles_or_runs_what_it_reads(file: Path) -> None:
    assert not list(flaws(file.read_text(encoding="utf-8")))


def test_the_scan_covers_all_code() -> None:
    names = {str(file.relative_to(PROJECT)) for file in FILES}
    assert len(names) > 250
    assert {
        "src/graftline/training/fit.py",
        "src/graftline/serving/package.py",
        "pipeline/dagster/pipes_run.py",
    } <= names


@pytest.mark.parametrize(
    ("code", "flaw"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("torch.load(x)", "without weights_only=True"),
        ("torch.load(x, weights_only=False)", "without weights_only=True"),
        ("np.load(x)", "without allow_pickle=False"),
        ("pd.read_pickle(x)", "calls pd.read_pickle"),
        ("yaml.load(x)", "calls yaml.load"),
        ("archive.extractall(x)", "calls archive.extractall"),
        ("subprocess.run(x, shell=True)", "by a shell"),
        ("trainer.fit(m, ckpt_path=p)", "without weights_only=True"),
        ("load(x, weights_only=False)", "lets it unpickle"),
        ("exec(text)", "calls exec"),
    ],
)
def test_the_scan_finds_what_it_looks_for(code: str, flaw: str) -> None:
    assert any(flaw in found for found in flaws(code))


PROJECT_FILE = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malware_is_excluded(version: str) -> None:
    (lightning,) = (
        Requirement(text) for text in PROJECT_FILE["project"]["dependencies"] if text.startswith("pytorch-lightning")
    )
    assert not lightning.specifier.contains(version)
    assert lightning.specifier.contains("2.6.6")


def test_servers_listen_on_this_machine_unless_told_otherwise() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in ("0.0.0.0", "::"), file
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert "0.0.0.0" not in makefile
    assert "dev --host 127.0.0.1" in makefile
    assert "\nhost: 127.0.0.1" in (PROJECT / "conf" / "serve.yaml").read_text(encoding="utf-8")
    assert '"--host", "127.0.0.1"' in (PROJECT / "pipeline" / "ui.py").read_text(encoding="utf-8")
