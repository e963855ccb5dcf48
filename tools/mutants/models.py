"""Faults in what stands between a stranger's model and the server."""

from mutants.planted import Mutant

CONFIG = "llmws/model_config.py"
WEIGHTS = "llmws/weight_files.py"
TOKENIZER = "llmws/tokenizer_files.py"
CONFIG_TESTS = "tests/unit/test_model_config.py tests/unit/catalog"
WEIGHTS_TESTS = "tests/unit/test_weight_files.py tests/unit/catalog"
TOKENIZER_TESTS = "tests/unit/test_tokenizer_files.py"
LOADING = "tests/integration/engine/test_loading.py -k transformers_trusts_no_folder"

MUTANTS = [
    Mutant("a configuration may name code", CONFIG, '"auto_map", "custom_generate"', '"custom_generate"', CONFIG_TESTS),
    Mutant(
        "a private key may hold a part of a configuration",
        CONFIG,
        "not (key in _HARMLESS and _is_plain(value))",
        "key not in _HARMLESS",
        CONFIG_TESTS,
    ),
    Mutant(
        "only the outermost keys of a configuration are checked",
        CONFIG,
        "        for name, each in value.items():\n            _check(name, each)\n",
        "",
        CONFIG_TESTS,
    ),
    Mutant("a configuration may say something twice", CONFIG, "if len(part) < len(pairs):", "if False:", CONFIG_TESTS),
    Mutant(
        "a number that JSON has not hides the keys beside it",
        CONFIG,
        "if list(value) == [_NUMBER] and",
        "if _NUMBER in value and",
        CONFIG_TESTS,
    ),
    Mutant(
        "a network may be built without end",
        "llmws/engine/building.py",
        "if modules > MAX_MODULES:",
        "if False:",
        "tests/unit/engine/test_building.py",
    ),
    Mutant(
        "a processor normalises as the folder says",
        "llmws/engine/processors.py",
        "    plain.normalizer = None\n",
        "",
        "tests/integration/engine/test_vision.py -k rule",
    ),
    Mutant(
        "a processor may make a picture of any size",
        "llmws/engine/processors.py",
        "    _check_sizes(processor)\n",
        "",
        "tests/integration/engine/test_vision.py -k beyond",
    ),
    Mutant(
        "a load follows links that a scan refuses",
        "llmws/engine/reading.py",
        "    check_files(folder)\n",
        "",
        "tests/integration/engine/test_loading.py -k damaged",
    ),
    Mutant("keys may be renamed", CONFIG, "if key in CLASS_KEYS:", "if False:", CONFIG_TESTS),
    Mutant("a number may be of any size", CONFIG, "abs(value) > MAX_NUMBER and", "False and", CONFIG_TESTS),
    Mutant(
        "a list may be of any length", CONFIG, "and len(value) > MAX_PARTS:", "and len(value) > 10**9:", CONFIG_TESTS
    ),
    Mutant("parts without end are built", CONFIG, "value > MAX_PARTS and", "value > 10**30 and", CONFIG_TESTS),
    Mutant(
        "attention may be a repository",
        CONFIG,
        '_BUILT_IN_IMPLEMENTATION: Final = re.compile(r"[a-z0-9_]{1,64}")',
        '_BUILT_IN_IMPLEMENTATION: Final = re.compile(r"[a-z0-9_/]{1,64}")',
        CONFIG_TESTS,
    ),
    Mutant(
        "two tensors may lie in one place",
        WEIGHTS,
        "is_sound = start == told_bytes and",
        "is_sound = start <= told_bytes and",
        WEIGHTS_TESTS,
    ),
    Mutant(
        "a shape may lie",
        WEIGHTS,
        "if not is_sound or (bits is not None and math.prod(tensor.shape) * bits != 8 * (end - start)):",
        "if not is_sound:",
        WEIGHTS_TESTS,
    ),
    Mutant(
        "a distributed checkpoint is read in place of what was checked",
        WEIGHTS,
        "if any(_DISTRIBUTED.fullmatch",
        "if False and any(_DISTRIBUTED.fullmatch",
        WEIGHTS_TESTS,
    ),
    Mutant("an index may name any file", WEIGHTS, "if not _SHARD.fullmatch(name):", "if False:", WEIGHTS_TESTS),
    Mutant(
        "a decoder may make text longer",
        TOKENIZER,
        "return 0 < len(pattern) >= len(content)",
        "return len(pattern) > 0",
        TOKENIZER_TESTS,
    ),
    Mutant(
        "a decoder may have any number of steps", TOKENIZER, "if count > MAX_DECODERS:", "if False:", TOKENIZER_TESTS
    ),
    Mutant(
        "links out of a model's folder are followed",
        "llmws/model_files.py",
        "if not os.path.realpath(path).startswith(root + os.sep):",
        "if False:",
        "tests/unit/catalog",
    ),
    Mutant(
        "a name is looked for on the disk before it is checked",
        "llmws/catalog/catalog.py",
        "        checked = ModelName(name)\n",
        "        for root in self._roots:\n            (root.folder / name).is_dir() and list((root.folder / name).iterdir())\n        checked = ModelName(name)\n",
        "tests/security/test_model_names.py",
    ),
    Mutant(
        "transformers may run a folder's code",
        "llmws/engine/reading.py",
        "AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)",
        "AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=True)",
        LOADING,
    ),
]
