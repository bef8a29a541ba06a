"""The house rules that a machine can keep: floors, homes, names, sizes, sentences. The tables are the rules."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proxy.config import Config, ModelOptions, load
from proxy.vendors import load as vendor

ROOT = Path(__file__).parent.parent
PROXY = ROOT / "proxy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Imports go down only. A family is named after its folder.
FLOORS = {
    "cli": 5,
    "server": 4,
    "app": 4,
    "openai": 3,
    "auth": 3,
    "workers": 2,
    "relay": 2,
    "admission": 2,
    "seats": 2,
    "speech": 2,
    "vendors": 2,
    "stores": 2,
    "ports": 1,
    "transcript": 1,
    "conversation": 1,
    "framing": 1,
    "markup": 1,
    "metrics": 1,
    "reply": 1,
    "config": 1,
    "telemetry": 1,
    "messages": 0,
    "patience": 0,
    "errors": 0,
}

# What may be imported on one's own floor: by a pattern of the importer, patterns of what it imports.
NEIGHBOURS = {
    "conversation": ["transcript", "ports"],
    "relay": ["admission", "seats", "speech"],
    "openai.*": ["openai.delivery", "openai.errors", "openai.models", "openai.request"],  # the family's own ground
    "vendors": ["vendors.*"],  # its table of names
    "vendors.*": ["vendors.base", "vendors.transport"],
    "stores": ["stores.*"],
}

# Those that stand apart: all that they may import of ours. Only the commands know the simulator.
ASIDE = {
    "ports": ["messages"],
    "config": [],
    "simulator": ["framing", "simulator.*"],
    "simulator.*": ["framing", "simulator.*"],
}
HIDDEN = {"simulator": ["cli"]}

# Each outside package has one home.
HOMES = {
    "cachetools": ["stores/memory.py"],
    "aiohttp": ["vendors/transport.py"],
    "httpx2": ["vendors/base.py", "vendors/transport.py"],
    "orjson": ["openai/*", "stores/*", "vendors/base.py", "simulator/*"],
    "prometheus_client": ["metrics.py"],
    "pydantic": ["config.py", "openai/*", "vendors/*"],
    "pyrate_limiter": ["stores/rates.py"],
    "pydantic_core": ["config.py", "openai/*", "vendors/*"],
    "redis": ["stores/redis.py"],
    "sqlite3": ["stores/sqlite.py"],
    "starlette": ["app.py", "openai/*", "simulator/*"],
    "uvicorn": ["server.py"],
    "yaml": ["config.py"],
    "yarl": ["vendors/transport.py"],
}

VENDORS = ("askhandle", "newoaks", "hottask", "quickchat", "misterturing", "mister turing")
NO_NOUNS = {"utils", "util", "helpers", "common", "manager", "managers", "service", "services", "core", "misc", "lib"}

MAX_DISTRIBUTIONS = 30
MAX_INSTALLED = 50 * 1024 * 1024
MAX_PROXY_CODE = 6000
MAX_FUNCTION = 60
MOST_FUNCTIONS = 30

# Put together here so that this file does not hold them itself.
REGISTRIES = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"))]
SKIPPED = {".git", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}


def sources(folder: Path = PROXY) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if not SKIPPED & set(path.parts))


def module(path: Path) -> str:
    """`proxy/vendors/base.py` is `vendors.base`; a family's `__init__.py` is `vendors`, the package's own ""."""
    parts = path.relative_to(PROXY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; of `from a import b` `a.b` if it is one."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:  # relative ones are banned in pyproject.toml
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def own_imports(path: Path) -> set[str]:
    """What a file imports of ours, without `proxy.`; "" is the package itself: its version."""
    names = {name for name in imports(path) if name == "proxy" or name.startswith("proxy.")}
    return {name.removeprefix("proxy").removeprefix(".") for name in names}


def fits(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def allowed(importer: str, imported: str) -> bool:
    if imported in ("", importer):
        return True
    for pattern, known in ASIDE.items():
        if fnmatch(importer, pattern):
            return fits(imported, known)
    family = imported.partition(".")[0]
    if family in HIDDEN:
        return importer in HIDDEN[family]
    floor, below = FLOORS[importer.partition(".")[0]], FLOORS[family]
    neighbours = [known for pattern, names in NEIGHBOURS.items() if fnmatch(importer, pattern) for known in names]
    return below < floor or fits(imported, neighbours)


def functions(paths: list[Path]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_imports_go_down() -> None:
    """Every file imports what is below it, and nothing beside or above it."""
    files = [path for path in sources() if module(path) not in ("", "__main__")]

    assert [
        f"{module(path)} -> {name}" for path in files for name in own_imports(path) if not allowed(module(path), name)
    ] == []


def test_every_file_has_a_floor() -> None:
    """Every file and family of the package stands in the table of floors, or apart."""
    tops = {module(path).partition(".")[0] for path in sources()} - {"", "__main__"}

    assert tops - set(FLOORS) - set(HIDDEN) == set()


def test_outside_packages_have_one_home() -> None:
    """Every import of an outside package stands in a file that the table names for it."""
    strays = []
    for path in sources():
        at = path.relative_to(PROXY).as_posix()
        for package in {name.partition(".")[0] for name in imports(path)}:
            if package in HOMES or package not in {"proxy", *sys.stdlib_module_names}:
                strays += [] if fits(at, HOMES.get(package, [])) else [f"{at}: {package}"]

    assert strays == []


def test_tests_mirror_the_package() -> None:
    """Every source file has a test file of its name at the same place."""
    files = [path.relative_to(PROXY) for path in sources() if path.name not in ("__init__.py", "__main__.py")]
    missing = [path.as_posix() for path in files if not (ROOT / "tests" / path.parent / f"test_{path.name}").is_file()]

    assert missing == []


def test_vendors_never_say_openai() -> None:
    """No adapter and no simulated vendor knows whose dialect the clients speak."""
    files = [*sources(PROXY / "vendors"), *sources(PROXY / "simulator")]

    assert [path.name for path in files if "openai" in path.read_text(encoding="utf-8").lower()] == []


def test_doors_never_name_a_vendor() -> None:
    """No file of the OpenAI doors knows a vendor by name."""
    texts = {path.name: path.read_text(encoding="utf-8").lower() for path in sources(PROXY / "openai")}

    assert [f"{name}: {vendor}" for name, text in texts.items() for vendor in VENDORS if vendor in text] == []


def test_a_file_is_a_noun() -> None:
    """No file or folder has one of the names that say nothing."""
    paths = [*sources(), *sources(ROOT / "tests")]

    assert [
        str(path)
        for path in paths
        if NO_NOUNS & {part.removeprefix("test_") for part in path.with_suffix("").parts[len(ROOT.parts) :]}
    ] == []


def test_functions_are_short() -> None:
    """No function is longer than 60 lines, and nine in ten are shorter than 30."""
    lengths = {name: length(function) for name, function in functions(sources())}

    assert [name for name, lines in lengths.items() if lines > MAX_FUNCTION] == []
    assert sum(lines < MOST_FUNCTIONS for lines in lengths.values()) >= 0.9 * len(lengths)


def test_every_test_says_what_it_shows() -> None:
    """Every test has a docstring of one sentence."""
    sentence = re.compile(r"(?!.*[.!?]\s+[A-Z])[A-Z0-9`/\"].*\.", re.DOTALL)
    tests = [(name, node) for name, node in functions(sources(ROOT / "tests")) if node.name.startswith("test_")]

    assert [name for name, node in tests if not sentence.fullmatch(ast.get_docstring(node) or "")] == []


def code_lines(path: Path) -> int:
    """How many lines of a file hold code: neither blank nor a comment or docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return len(text.splitlines())
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in silent]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree(path)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_the_package_is_small() -> None:
    """All that the package ships, simulator included, stays under 6,000 lines of code."""
    files = [path for path in PROXY.rglob("*") if path.is_file() and not SKIPPED & set(path.parts)]

    assert sum(map(code_lines, files)) < MAX_PROXY_CODE


def installed(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring along here, by their canonical names."""
    wanted = [(line, {""}) for line in requirements]
    found = set()
    while wanted:
        line, extras = wanted.pop()
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            asked = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if asked not in found:
                found.add(asked)
                wanted += [(inner, {"", *asked[1]}) for inner in distribution(asked[0]).requires or ()]
    return {name for name, _ in found}


def test_the_core_is_light() -> None:
    """The core and all that it brings along are at most 30 distributions and 50 MiB."""
    names = installed(PROJECT["dependencies"])
    files = [Path(str(file.locate())) for name in names for file in distribution(name).files or ()]

    assert len(names) + 1 <= MAX_DISTRIBUTIONS
    assert sum(path.stat().st_size for path in files if path.is_file()) <= MAX_INSTALLED


def test_no_file_names_a_registry() -> None:
    """No file of the project is bound to a host that packages come from."""
    bound = []
    for path in ROOT.rglob("*"):
        if path.is_file() and not SKIPPED & set(path.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            bound += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRIES if host in text]

    assert bound == []


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("requirements.lock", ("redis", "build")),
        ("requirements-test.lock", ("test",)),
        ("tests/suites/node.lock", ()),
        ("tests/suites/openai2.lock", ()),
    ],
)
def test_a_lock_is_hashed(file: str, extras: tuple[str, ...]) -> None:
    """Every line of a lock pins one version with hashes, and nothing that the project asks for is missing."""
    entries = re.split(r"\n(?=[a-z])", (ROOT / file).read_text(encoding="utf-8"))[1:]
    locked = {canonicalize_name(entry.partition("==")[0]) for entry in entries}
    asked = [
        *(PROJECT["dependencies"] if extras else ()),
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    wanted = {canonicalize_name(Requirement(line).name) for line in asked}

    assert [entry for entry in entries if not re.match(r"[\w.-]+==[\w.]+( ; .*)? \\\n    --hash=sha256:", entry)] == []
    assert wanted - locked - {"parley-proxy"} == set()


def test_node_packages_are_hashed() -> None:
    """Every package of the Node suites is pinned with its hash, and by no address."""
    lock = json.loads((ROOT / "tests" / "suites" / "package-lock.json").read_text(encoding="utf-8"))
    packages = {name: package for name, package in lock["packages"].items() if name}

    assert packages
    assert [name for name, package in packages.items() if "integrity" not in package or "resolved" in package] == []


def test_the_readme_can_be_followed() -> None:
    """The README has both set-up commands, and every block in it is one that its language takes."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(bash|sh|python|yaml)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    languages = {language for language, _ in blocks}

    assert {"bash", "python"} <= languages
    assert len(re.findall(r"^[^#`>-].* -m tests$", readme, re.MULTILINE)) == 1
    assert "parley demo" in readme
    for language, block in blocks:
        if language == "python":
            compile(block, "README.md", "exec")
        elif language in ("bash", "sh"):
            subprocess.run(["bash", "-n"], input=block, text=True, check=True)


class Vendors(dict[str, type[ModelOptions]]):
    def __missing__(self, name: str) -> type[ModelOptions]:
        return vendor(name).Options


def example() -> str:
    return (ROOT / "config.example.yaml").read_text(encoding="utf-8")


def test_the_example_loads_as_it_is() -> None:
    """An unmodified copy of the example loads without any variable set, and everything in it is the default."""
    config = load(example(), vendors=Vendors(), environ={})

    assert config.models
    assert config.model_copy(update={"models": {}}) == Config()


def test_the_example_shows_every_key() -> None:
    """What a bot may also have stands in the example, commented out, with its default."""
    shop = re.search(r"  shop:\n(.*?)\n\n  \w", example(), re.DOTALL)
    assert shop is not None
    written = "models:\n  shop:\n" + re.sub(r"(?m)^    # (?=\w+: )", "    ", shop[1])
    options = load(written, vendors=Vendors(), environ={}).models["shop"]
    samples = {"description", "aliases", "headers", "idle_ttl", "vendor"}

    assert set(ModelOptions.model_fields) <= options.model_fields_set
    for name in set(type(options).model_fields) - samples:
        field = type(options).model_fields[name]
        assert field.is_required() or getattr(options, name) == field.get_default(call_default_factory=True), name


def test_the_example_shows_every_section() -> None:
    """Every key of every other section stands in the example, the long list of prompts apart."""
    config = load(example(), vendors=Vendors(), environ={})

    for section in (config, config.server, config.server.log, config.conversation, config.responses):
        assert set(type(section).model_fields) - section.model_fields_set <= {"utility_prompts"}
