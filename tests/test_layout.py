"""The house: folders and packages in step, import directions, names that must not leak."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ROOMS = ("vision_sae", "adapters", "assets", "recipes")
MODEL_LIBRARIES = {"timm", "open_clip", "transformers", "diffusers", "torchvision"}


def imports_of(path: Path, *, top_only: bool = False) -> set[str]:
    """Every module that a file imports; `top_only` leaves out imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_every_package_folder_is_listed() -> None:
    folders = {
        p.parent.relative_to(ROOT) for room in ROOMS for p in (ROOT / room).rglob("__init__.py")
    }
    assert folders == {Path(SETUPTOOLS["package-dir"][name]) for name in SETUPTOOLS["packages"]}


def test_every_benchmark_is_type_checked() -> None:
    files = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    settings = PROJECT["tool"]["mypy"]
    assert settings["modules"] == settings["overrides"][0]["module"] == files


@pytest.mark.parametrize("room", ["adapters", "assets", "recipes"])
def test_a_room_cannot_be_imported_by_its_bare_name(room: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True)
    assert run.returncode != 0
    assert f"import vision_sae.{room}".encode() in run.stderr


@pytest.mark.parametrize("path", files_of("vision_sae"), ids=lambda p: p.stem)
def test_the_core_imports_no_adapter_recipe_asset_or_model_library(path: Path) -> None:
    for module in imports_of(path):
        parts = module.split(".")
        assert parts[0] not in MODEL_LIBRARIES, module
        assert parts[0] != "vision_sae" or parts[1:2] not in (["adapters"], ["recipes"], ["assets"])


@pytest.mark.parametrize("name", ["bias.cli", "bottleneck.compare_command", "unlearn.cli"])
def test_commands_of_a_recipe_can_be_imported_first(name: str) -> None:
    code = f"import vision_sae.recipes.{name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", files_of("recipes"), ids=lambda p: p.stem)
def test_recipes_know_the_adapter_protocol_only(path: Path) -> None:
    others = {m for m in imports_of(path) if m.startswith("vision_sae.adapters")}
    # a recipe that samples must know what a pipeline is
    assert not {m for m in others if not m.startswith("vision_sae.adapters.diffusion")}


@pytest.mark.parametrize("path", files_of("adapters"), ids=lambda p: p.stem)
def test_adapters_import_model_libraries_inside_functions(path: Path) -> None:
    assert not {m.split(".")[0] for m in imports_of(path, top_only=True)} & MODEL_LIBRARIES


def test_the_core_imports_with_its_own_dependencies_only() -> None:
    """Everything but the extras is hidden, and `import vision_sae` still works."""
    hidden = [*MODEL_LIBRARIES, "PIL", "webdataset", "jinja2", "sklearn", "scipy", "tensorboard"]
    hidden += ["typer", "rich"]
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import vision_sae"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_assets_stay_within_their_budget() -> None:
    sizes = [p.stat().st_size for p in (ROOT / "assets").rglob("*") if p.is_file()]
    assert sum(sizes) < 60e6
    assert max(sizes) < 20e6
    assert sum(p.stat().st_size for p in (ROOT / "assets/emoji-canvas").rglob("*")) < 15e6


@pytest.mark.slow
def test_a_built_wheel_holds_every_file(tmp_path: Path) -> None:
    import zipfile

    build = ["-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, *build], check=True)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).glob("*.py"):
            assert f"{package.replace('.', '/')}/{path.name}" in held
    assert "vision_sae/assets/emoji-canvas/train-000.tar.gz" in held
    assert "vision_sae/assets/emoji-clip/open_clip_config.json" in held
    assert "vision_sae/report/templates/page.html" in held
    assert not {name for name in held if name.split("/")[0] in ("adapters", "recipes", "assets")}
