"""The poisoned repositories: each one attack, told in a sentence, and what becomes of it."""

from __future__ import annotations

from typing import NamedTuple

from tests.security.poisoned.canary import ENVIRONMENT
from tests.security.poisoned.folders import edit, unlink_weights, weights
from tests.security.poisoned.spoils import (
    Spoil,
    adapter,
    config,
    growing,
    hard_linked,
    header,
    index,
    linked,
    nested,
    pickled,
    pipe,
    template,
    text,
    tokenizer,
    with_code,
    zipped,
)

CODE = "config.json asks for custom code"
MEANING = "config.json changes what its keys mean (attribute_map)"
PRIVATE = "config.json has the private key"
SENSELESS = "model.safetensors has a header that makes no sense"
NO_SAFETENSORS = "model.safetensors is not a safetensors file"
PICKLES = "its weights are pickles, which can run code"
TEMPLATE = "the model's chat template"


class Poison(NamedTuple):
    """A repository that is not what it seems.

    Attributes:
        attack: what it tries, in one sentence.
        spoil: makes it of a good folder.
        refused: the beginning of why it is not offered; None where it is, and does no harm.
        loaded: the beginning of why the engine refuses it; None where it serves it.
        prompted: the beginning of why there is no prompt; None where there is one.
    """

    attack: str
    spoil: Spoil
    refused: str | None = None
    loaded: str | None = None
    prompted: str | None = None


ESCAPES = {
    "by the class of a text": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}"
    "{% if c.__name__ == '_wrap_close' %}{{ c.__init__.__globals__['popen']('touch MARK').read() }}{% endif %}"
    "{% endfor %}",
    "by the globals of a function": "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
    "by attr": "{{ (cycler | attr('__init__') | attr('__globals__'))['os'].popen('touch MARK').read() }}",
    "by self": "{{ self.__init__.__globals__.__builtins__.open('MARK', 'w') }}",
    "by a kept format": "{% set f = '{0.__init__}'.format %}{{ f(cycler) }}"
    "{{ joiner.__init__.__globals__.os.popen('touch MARK').read() }}",
    "by map": "{{ ([cycler] | map(attribute='__init__') | list)[0].__globals__.os.popen('touch MARK').read() }}",
    "by indirection": "{{ cycler['__in' ~ 'it__']['__glo' ~ 'bals__']['o' ~ 's']['po' ~ 'pen']('touch MARK').read() }}",
    "by a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__.__builtins__.open('MARK', 'w') }}",
}
"""Ways out of a template into the interpreter. Each runs its payload in a plain environment of jinja2."""


POISONS: dict[str, Poison] = {
    # --- code by configuration ---
    "auto-map": Poison(
        "`auto_map` names a class in a file of the repository",
        with_code({"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}),
        CODE,
        CODE,
    ),
    "auto-map-of-an-unknown-type": Poison(
        "a model type that only the repository's code knows",
        with_code({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}),
        CODE,
        CODE,
    ),
    "auto-map-of-another-repository": Poison(
        "`auto_map` names a file of another repository, which would be fetched",
        config(auto_map={"AutoConfig": "evil/repo--evil.Evil"}),
        CODE,
        CODE,
    ),
    "nested-auto-map": Poison(
        "vLLM CVE-2026-22807: `auto_map` in a nested part ran code although remote code was off",
        with_code({"text_config": {"auto_map": {"AutoConfig": "evil.Evil"}}}),
        CODE,
        CODE,
    ),
    "trust": Poison("the configuration itself says that it is trusted", config(trust_remote_code=True), CODE, CODE),
    "custom-generate": Poison(
        "`custom_generate/generate.py` replaces the model's generate()",
        with_code({}, script="custom_generate/generate.py"),
    ),
    "custom-generate-named": Poison(
        "the configuration names a repository with a generate() of its own",
        config(custom_generate="evil/repo"),
        CODE,
        CODE,
    ),
    "generation-config": Poison(
        "generation_config.json names a repository with a generate() of its own",
        lambda folder, canary: edit(
            folder / "generation_config.json", {"custom_generate": "evil/repo", "trust_remote_code": True}
        ),
    ),
    "custom-pipelines": Poison(
        "`custom_pipelines` names a class in a file of the repository",
        with_code({"custom_pipelines": {"x": {"impl": "evil.Evil"}}}),
        CODE,
        CODE,
    ),
    "kernel": Poison(
        "transformers CVE-2026-4372: the private name of the attention is a repository with a compiled kernel",
        config(_attn_implementation_internal="evil/kernel"),
        PRIVATE,
        PRIVATE,
    ),
    "public-kernel": Poison(
        "the attention is a repository with a compiled kernel", config(attn_implementation="evil/kernel"), CODE, CODE
    ),
    "renamed-kernel": Poison(
        "`attribute_map` gives the private name of the attention another one, which no rule knows",
        config(attribute_map={"x": "_attn_implementation_internal"}, x="evil/kernel"),
        MEANING,
        MEANING,
    ),
    "renamed-layers": Poison(
        "`attribute_map` gives the number of layers another name, in a nested part",
        config(text_config={"attribute_map": {"x": "num_hidden_layers"}, "x": 10**9}),
        MEANING,
        MEANING,
    ),
    "experts-kernel": Poison(
        "the experts' code is a repository with a compiled kernel",
        config(text_config={"_experts_implementation_internal": "evil/kernel"}),
        PRIVATE,
        PRIVATE,
    ),
    "quantisation": Poison(
        "a quantisation brings code of its own to read its weights",
        config(quantization_config={"quant_method": "evil", "modules_to_not_convert": ["evil.Evil"]}),
        "its weights are quantised (evil)",
        "its weights are quantised (evil)",
    ),
    "fusion": Poison(
        "`fusion_config` patches transformers' classes, for every model of the process",
        config(fusion_config={"patch_embeddings": True}),
        "config.json changes how models are built",
        "config.json changes how models are built",
    ),
    "scripts": Poison(
        "scripts that an import of the folder, or a start in it, would run",
        lambda folder, canary: [
            (folder / name).write_text(canary.code(folder.name))
            for name in ("modeling_llama.py", "torch.py", "sitecustomize.py", "__init__.py", "setup.py")
        ],
    ),
    # --- other files, other repositories ---
    "other-configuration": Poison(
        "transformers CVE-2026-5241: another configuration, which nobody checked, is read in place of this one",
        config(configuration_files=["config.5.0.0.json"]),
        "config.json names other files to read",
        "config.json names other files to read",
    ),
    "other-weights": Poison(
        "the configuration names a pickle as its weights",
        config(transformers_weights="weights.pt"),
        "config.json names other files to read",
        "config.json names other files to read",
    ),
    "backbone": Poison(
        "a nested part is to be looked up in another repository",
        config(vision_config={"model_type": "dpt", "backbone": "evil/repo"}),
        "config.json names another repository",
        "config.json names another repository",
    ),
    "adapter": Poison(
        "an adapter whose base model is another repository",
        adapter,
        "it is an adapter for another model",
        "it is an adapter for another model",
    ),
    "said-twice": Poison(
        "two readers of one file that take different ones of two equal keys",
        lambda folder, canary: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace("{", '{"model_type": "evil", ', 1)
        ),
        "config.json says something twice",
        "config.json says something twice",
    ),
    "linked-configuration": Poison(
        "config.json is a link to a secret",
        linked("config.json"),
        "config.json is a link out of the folder",
        "config.json is a link out of the folder",
    ),
    "linked-weights": Poison(
        "the weights are a link to a secret",
        linked("model.safetensors"),
        "model.safetensors is a link out of the folder",
        "model.safetensors is a link out of the folder",
    ),
    "hard-link": Poison("a hard link is a file like any other", hard_linked),
    "pipe": Poison(
        "a pipe that nobody writes to keeps its reader for ever",
        pipe,
        "generation_config.json is neither a file nor a folder",
        "generation_config.json is neither a file nor a folder",
    ),
    "tokenizer-paths": Poison(
        "tokenizer_config.json says that the vocabulary lies elsewhere",
        lambda folder, canary: edit(
            folder / "tokenizer_config.json", {"tokenizer_file": str(canary.secret), "vocab_file": str(canary.secret)}
        ),
    ),
    # --- pickles ---
    "pickle": Poison(
        "pytorch_model.bin runs code when it is read", pickled("pytorch_model.bin", instead=True), PICKLES, PICKLES
    ),
    "pickles-beside": Poison(
        "pickles of all names beside honest weights; they are never opened",
        pickled(
            "pytorch_model.bin", "consolidated.00.pth", "optimizer.pt", "training_args.bin", "x.pkl", "tf_model.h5"
        ),
    ),
    "disguised-pickle": Poison(
        "a pickle by the name of model.safetensors", pickled("model.safetensors"), NO_SAFETENSORS, NO_SAFETENSORS
    ),
    "disguised-zip": Poison(
        "a zip of torch.save by the name of model.safetensors", zipped, NO_SAFETENSORS, NO_SAFETENSORS
    ),
    "gguf": Poison(
        "a GGUF file, whose template and sizes other readers trusted",
        lambda folder, canary: (unlink_weights(folder), (folder / "x.gguf").write_bytes(b"GGUF")),
        "GGUF is not read",
        "it has no *.safetensors file",
    ),
    # --- weights ---
    "index-out": Poison(
        "the index names a file above the folder",
        index("../../canary/secret.safetensors"),
        "model.safetensors.index.json names '../../canary/secret.safetensors'",
        "model.safetensors.index.json names '../../canary/secret.safetensors'",
    ),
    "index-absolute": Poison(
        "the index names a file by its whole path",
        index("SECRET"),
        "model.safetensors.index.json names '/",
        "model.safetensors.index.json names '/",
    ),
    "index-missing": Poison(
        "the index names a file that is not there", index("x.safetensors"), "x.safetensors is", "x.safetensors is"
    ),
    "index-pickle": Poison(
        "the index names a pickle",
        lambda folder, canary: (pickled("x.bin")(folder, canary), index("x.bin")(folder, canary)),
        "model.safetensors.index.json names 'x.bin'",
        "model.safetensors.index.json names 'x.bin'",
    ),
    "index-beside": Poison(
        "an index that contradicts the single file beside it; the file counts, the index is checked all the same",
        lambda folder, canary: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../x"}}'),
        "model.safetensors.index.json names '../x'",
    ),
    "distributed": Poison(
        "a file by whose name transformers reads other weights than those that were checked",
        lambda folder, canary: weights(folder / "shard-00001-model-00001-of-00001.safetensors", seed=8),
        "it holds a distributed checkpoint",
        "it holds a distributed checkpoint",
    ),
    "overlap": Poison(
        "two tensors on one place",
        header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        SENSELESS,
        SENSELESS,
    ),
    "huge-shape": Poison(
        "a shape of petabytes in a file of kilobytes",
        header({"model.norm.weight": {"dtype": "F32", "shape": [10**15], "data_offsets": [25600, 25664]}}),
        SENSELESS,
        SENSELESS,
    ),
    "negative": Poison(
        "a negative shape",
        header({"model.norm.weight": {"dtype": "F32", "shape": [-16], "data_offsets": [25600, 25664]}}),
        SENSELESS,
        SENSELESS,
    ),
    "type-lie": Poison(
        "a type that is wider than the data",
        header({"model.norm.weight": {"dtype": "F64", "shape": [16], "data_offsets": [25600, 25664]}}),
        SENSELESS,
        SENSELESS,
    ),
    "long-header": Poison(
        "a header that says it is as long as the address space",
        lambda folder, canary: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
        NO_SAFETENSORS,
        NO_SAFETENSORS,
    ),
    "deep-header": Poison("a header of nested brackets", header(nested(100_000).encode()), SENSELESS, SENSELESS),
    "beyond": Poison(
        "a tensor beyond the end of the file",
        header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [36544, 36544 + 2**42]}}),
        "model.safetensors ",
        "model.safetensors ",
    ),
    "not-a-number": Poison(
        "weights of NaN, for which every token is as good",
        lambda folder, canary: weights(folder / "model.safetensors", seed=7, value=float("nan")),
        None,
        "the model computes no usable logits",
    ),
    # --- amounts ---
    "layers": Poison(
        "a billion layers, built one by one",
        config(num_hidden_layers=10**9),
        "config.json asks for more than 4096 parts",
        "config.json asks for more than 4096 parts",
    ),
    "labels": Poison(
        "a billion labels, each a text that transformers makes",
        config(num_labels=10**9),
        "config.json asks for more than 4096 parts",
        "config.json asks for more than 4096 parts",
    ),
    "vocabulary": Poison(
        "a vocabulary of a trillion words",
        config(vocab_size=10**12),
        "config.json has a number beyond 16777216",
        "config.json has a number beyond 16777216",
    ),
    "pattern": Poison(
        "a text of which every letter is a layer",
        config(hybrid_override_pattern="-" * 20_000),
        "config.json has a list or a text of more than 4096",
        "config.json has a list or a text of more than 4096",
    ),
    "deep-configuration": Poison(
        "a configuration of nested brackets",
        text("config.json", nested(100_000)),
        "config.json is not valid JSON",
        "config.json is not valid JSON",
    ),
    "deep-generation-config": Poison(
        "a generation_config.json of nested brackets",
        text("generation_config.json", nested(100_000)),
        None,
        "transformers cannot read it: RecursionError",
    ),
    "methods": Poison(
        "keys that take the place of the configuration's methods",
        config(to_dict="x", get_text_config="x"),
        None,
        "transformers cannot read it",
    ),
    "encoder": Poison(
        "a causal model that says it has an encoder",
        config(is_encoder_decoder=True),
        None,
        "encoder cannot be loaded",
    ),
    # --- tokenizer ---
    "tokenizer-code": Poison(
        "tokenizer_config.json names a class in a file of the repository",
        with_code(
            {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"},
            file="tokenizer_config.json",
        ),
    ),
    "processor-code": Poison(
        "preprocessor_config.json names classes in a file of the repository",
        with_code(
            {"auto_map": {"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}, "processor_class": "Evil"},
            file="preprocessor_config.json",
        ),
    ),
    "decoder-bomb": Poison(
        "a decoder that doubles a letter fifteen times over, in the server's own process",
        tokenizer(growing),
        None,
        "the model's tokenizer.json cannot be used: its decoder makes text longer",
        "the model's tokenizer.json cannot be used: its decoder makes text longer",
    ),
    "deep-tokenizer": Poison(
        "a tokenizer.json of nested brackets",
        text("tokenizer.json", nested(100_000)),
        None,
        "the model's tokenizer.json cannot be used",
        "the model's tokenizer.json cannot be used",
    ),
    "huge-id": Poison(
        "a word whose id is the largest that there is",
        tokenizer(lambda content: content["model"]["vocab"].update({"who": 2**32 - 1})),
    ),
    # --- templates ---
    **{
        f"escape-{name.replace(' ', '-')}": Poison(
            f"a template that leaves the sandbox {name}", template(source), prompted=TEMPLATE
        )
        for name, source in ESCAPES.items()
    },
    "include": Poison("a template that includes a file", template("{% include 'SECRET' %}"), prompted=TEMPLATE),
    "import": Poison("a template that imports a file", template("{% import 'SECRET' as x %}"), prompted=TEMPLATE),
    "endless": Poison(
        "a template that never ends",
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        prompted="the model's chat template or tokenizer took more than",
    ),
    "memory": Poison(
        "a template that takes all memory",
        template("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"),
        prompted="the model's chat template took too much memory",
    ),
    "environment": Poison(
        "a template that writes the server's environment into the prompt",
        template("{{ cycler.__init__.__globals__.os.environ['" + ENVIRONMENT + "'] }}"),
        prompted=TEMPLATE,
    ),
    # --- names ---
    "Config.JSON": Poison(
        "files of names that differ by case alone, for file systems that know none",
        lambda folder, canary: edit(folder / "CONFIG.JSON", {"auto_map": {"AutoConfig": "evil.Evil"}}),
    ),
    "x; touch mark": Poison("a folder whose name a shell would run", lambda folder, canary: None, "'x; touch mark'"),
    "x\x1b[2Jy": Poison("a folder whose name clears the screen", lambda folder, canary: None, "'x\\x1b[2Jy'"),
}
