"""From a model's folder to a runner of the tier that suits it.

Owns the choice of tier and what is promised. Knows no requests. Invariant: what a model is promised depends on the
configuration and the devices, not on what else was loaded, and is promised again whenever it is loaded again: no more,
and no less unless other processes have taken so much of the device since that it never fits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine import memory
from llmws.engine.devices import (
    anonymous_bytes,
    chosen,
    device_memory,
    memory_for_models,
    no_flash_attention,
    placement,
    target,
)
from llmws.engine.digest import model_digest, tokenizer_digest
from llmws.engine.estimate import (
    FALLBACK_RUNNING,
    FORCED,
    IMAGES,
    estimate,
    growth,
    most_running,
    paged_footprint,
    writes_scores,
)
from llmws.engine.fallback import Context, FallbackRunner, Increments, check_sight, find_increments
from llmws.engine.fast import FastRunner
from llmws.engine.linears import held_bytes
from llmws.engine.measure import measured_footprint, peak_values, whole_config
from llmws.engine.network import Network, device_errors, vocabulary
from llmws.engine.paged import kernel_for
from llmws.engine.reading import blamed_on_files, check_folder, read_network, reporting
from llmws.engine.residency import Claim
from llmws.engine.runner import DeviceLostError, Fingerprint, Progress, Runner
from llmws.engine.sampler import SAMPLER_VERSION
from llmws.engine.selfcheck import adopt
from llmws.engine.vision import Vision, has_processor, load_vision
from llmws.engine_api import ModelInfo, ModelRef
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError
from llmws.tokenizer_files import TokenizerFiles, read_tokenizer

log = logging.getLogger(__name__)

Compiler = Callable[..., Any]
"""See `torch.compile`."""


class _Read(NamedTuple):
    """A model that is in memory, and the bytes beside it."""

    model: ModelRef
    fingerprint: Fingerprint
    network: Network
    files: TokenizerFiles
    budget_bytes: int
    spare_bytes: int


class TransformersLoader:
    """A `Loader` of any transformers causal language model.

    Args:
        optimization: device, dtype, tier and the share of memory to use.
        limits: bounds on context and on requests at once.
        compiler: makes a faster forward of a forward.
    """

    def __init__(
        self, optimization: OptimizationSection, limits: LimitsSection, *, compiler: Compiler = torch.compile
    ) -> None:
        self._optimization = optimization
        self._limits = limits
        self._compiler = compiler
        self._process_bytes = anonymous_bytes()
        self._promised: dict[str, int] = {}  # contexts by digest: dtype and tier follow from the configuration
        torch.backends.cuda.enable_flash_sdp(optimization.flash_attention is not False)
        # For every new length of a prompt or a context it would plan its kernel anew, which takes longer than a step.
        torch.backends.cuda.enable_cudnn_sdp(False)  # noqa: FBT003 - torch's signature

    def fingerprint(self, model: ModelRef) -> Fingerprint:
        """See `Loader.fingerprint`."""
        folder = Path(model.location)
        return Fingerprint(model_digest(folder), tokenizer_digest(folder))

    def claim(self, model: ModelRef) -> Claim:
        """See `Loader.claim`."""
        devices, dtype = target(self._optimization)
        folder = Path(model.location)
        check_folder(folder)
        read_tokenizer(folder)
        found = estimate(folder, dtype=dtype, device=devices[0], tier=self._optimization.tier)
        budgets = {device: self._budget(device) for device in devices}
        free = {device: device_memory(device)[1] for device in devices}
        where = chosen(found.weights_bytes, free_bytes=free, budget_bytes=budgets)
        budget_bytes = sum(budgets[device] for device in where)
        left_bytes = budget_bytes - found.weights_bytes
        running = self._limits.max_running
        try:
            with blamed_on_files(folder):
                grows = growth(found, dtype=dtype, device=devices[0], budget_bytes=left_bytes, max_running=running)
        except ModelInvalidError:  # a load measures it
            need_bytes = left_bytes
        else:
            need_bytes = grows.need_bytes(
                self._context(model_digest(folder), grows, found.positions, left_bytes, self._spare(where))
            )
        return Claim(
            name=model.name,
            devices=tuple(str(device) for device in where),
            budget_bytes=budget_bytes,
            held_bytes=found.weights_bytes,
            need_bytes=need_bytes,
        )

    def load(self, model: ModelRef, claim: Claim, *, progress: Progress) -> Runner:
        """See `Loader.load`."""
        _, dtype = target(self._optimization)
        folder = Path(model.location)
        log.info("loading %s in %s", model.name, dtype)
        check_folder(folder)
        fingerprint = self.fingerprint(model)
        files = read_tokenizer(folder)
        where = [torch.device(name) for name in claim.devices]
        budgets = {device: self._budget(device) for device in where}
        with device_errors(model.name):
            with reporting(folder, progress) as total:
                network = read_network(folder, dtype, placement(budgets))
            increments = find_increments(network, vocabulary(network)) if has_processor(folder) else None
            vision = self._vision(folder, network, increments) if increments is not None else None
            # Before the tier changes how it attends: what is measured is all the rest.
            seen_values = peak_values(network)
            progress(total, total)  # other models' streams are stepped between the trials too
            refusal = self._refusal(network, vision)
            progress(total, total)
            budget_bytes = claim.budget_bytes - held_bytes(network)
            read = _Read(model, fingerprint, network, files, budget_bytes, self._spare(where))
            if refusal is None:
                return self._fast(read, seen_values)
            increments = increments or find_increments(network, vocabulary(network))
            return self._fallback(read, increments, vision, refusal)

    def _fast(self, read: _Read, seen_values: int) -> FastRunner:
        network = read.network
        config = whole_config(network.config)
        running = self._limits.max_running or most_running(
            config, device=network.device, budget_bytes=read.budget_bytes
        )
        grows = paged_footprint(
            config,
            dtype=network.dtype,
            device=network.device,
            max_running=running,
            writes_scores=writes_scores(type(network)),
            token_values=seen_values,
        )
        context = self._promise(read, grows)
        info = self._info(read, tier="fast", max_context=context, max_running=running)
        if self._optimization.compile:
            log.warning("%s is not compiled: the fast tier is not, where it can it records CUDA graphs", info.ref.name)
        return FastRunner(
            network,
            read.files.tokenizer,
            info=info,
            eos_ids=_eos_ids(network, read.files),
            layout=grows.layout,
            workspace_bytes=grows.workspace_bytes(context),
            held_bytes=held_bytes(network),
        )

    def _fallback(self, read: _Read, increments: Increments, vision: Vision | None, refusal: str) -> FallbackRunner:
        network = read.network
        is_compiled = self._optimization.compile and self._compiled(network)
        footprint = measured_footprint(network, increments, sees=vision is not None)
        context = self._promise(read, footprint)
        running = self._limits.max_running or FALLBACK_RUNNING
        info = self._info(
            read,
            tier="fallback",
            tier_reason=refusal,
            max_context=context,
            max_running=running,
            vision=vision,
            is_compiled=is_compiled,
        )
        return FallbackRunner(
            network,
            read.files.tokenizer,
            info=info,
            eos_ids=_eos_ids(network, read.files),
            footprint=footprint,
            increments=increments,
            held_bytes=held_bytes(network),
            vision=vision,
        )

    def _compiled(self, network: Network) -> bool:
        """Compiles the forward; where that fails, the log says why, and the model goes on without."""
        module: Any = network
        plain = module.forward
        log.info("compiling; this takes minutes, in which running answers wait")
        module.forward = self._compiler(plain, dynamic=True)
        try:
            Context(network, [0, 0], use_cache=False).forward(2)
        except (ModelOutOfMemoryError, DeviceLostError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler lacks, the model is the same without
            module.forward = plain
            log.warning("the model cannot be compiled: %s", " ".join(str(error).split())[:500])
            return False
        return True

    def _info(
        self,
        read: _Read,
        *,
        tier: str,
        max_context: int,
        max_running: int,
        tier_reason: str = "",
        vision: Vision | None = None,
        is_compiled: bool = False,
    ) -> ModelInfo:
        network = read.network
        lacks_flash = no_flash_attention(network.device, network.dtype)
        if lacks_flash is not None and self._optimization.flash_attention is True:
            log.warning("%s runs without flash attention: %s", read.model.name, lacks_flash)
        return ModelInfo(
            ref=read.model,
            digest=read.fingerprint.digest,
            tokenizer_digest=read.fingerprint.tokenizer_digest,
            engine=f"{tier}/{SAMPLER_VERSION}",
            device=str(network.device),
            dtype=str(network.dtype).removeprefix("torch."),
            max_context=max_context,
            max_running=max_running,
            vocab_size=network.get_input_embeddings().num_embeddings,
            vision=vision is not None,
            image_tokens=vision.image_tokens if vision is not None else 0,
            flash_attention=lacks_flash is None and self._optimization.flash_attention is not False,
            tier=tier,
            tier_reason=tier_reason,
            attention=_attention(network) if tier == "fast" else str(network.config._attn_implementation),
            compiled=is_compiled,
        )

    def _refusal(self, network: Network, vision: Vision | None) -> str | None:
        """Why the model is not for the fast tier."""
        if self._optimization.tier == "fallback":
            return FORCED
        if vision is not None:
            return IMAGES
        return adopt(network, whole_config(network.config))

    def _vision(self, folder: Path, network: Network, increments: Increments) -> Vision | None:
        """What makes the model see, if it can; if not, the log says why, and it is served for text."""
        try:
            with device_errors("trying the model out on an image"):
                vision = load_vision(folder, network, max_pixels=self._limits.max_image_pixels)
                check_sight(network, vision, increments)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a processor lacks, text goes on
            log.warning("%s takes no images: %s", folder.name, " ".join(str(error).split())[:300])
            return None
        return vision

    def _budget(self, device: torch.device) -> int:
        """Bytes of a device that models may take together."""
        total, free = memory_for_models(device, process_bytes=self._process_bytes)
        return memory.budget(total_bytes=total, free_bytes=free, utilization=self._optimization.memory_utilization)

    def _spare(self, devices: Iterable[torch.device]) -> int:
        """Bytes of these devices that no promise is made of."""
        return sum(memory.spare(device_memory(device)[0]) for device in devices)

    def _promise(self, read: _Read, grows: memory.Growth) -> int:
        """The context that a model is promised from now on."""
        positions = memory.positions(whole_config(read.network.config))
        digest = read.fingerprint.digest
        context = self._context(digest, grows, positions, read.budget_bytes, read.spare_bytes)
        promised = self._promised.setdefault(digest, context)
        if context < promised:
            log.warning("%s was promised %d tokens; there is memory left for %d", read.model.name, promised, context)
        return context

    def _context(
        self, digest: str, grows: memory.Growth, positions: int | None, budget_bytes: int, spare_bytes: int
    ) -> int:
        """The context that was promised before; only where that never fits any more, or was not, the longest that does.

        What other processes have taken since is made up for by half of what is kept spare of the devices.
        """
        promised = self._promised.get(digest)
        if promised is not None and grows.need_bytes(promised) <= budget_bytes + spare_bytes // 2:
            return promised
        return memory.longest_context(
            grows, budget_bytes=budget_bytes, positions=positions, limit=self._limits.max_context
        )


def _attention(network: Network) -> str:
    """What a model on the fast tier attends with."""
    return "paged-triton" if kernel_for(network.device) else "paged-sdpa"


def _eos_ids(network: Network, files: TokenizerFiles) -> frozenset[int]:
    """All ids that end a completion, wherever the model's files name them. What is no id is passed over."""
    named: list[object] = []
    if (text := files.named.get("eos_token")) is not None:
        named.append(files.tokenizer.token_to_id(text))
    for config in (network.generation_config, network.config, network.config.get_text_config()):
        value = getattr(config, "eos_token_id", None)
        named += value if isinstance(value, list) else [value]
    return frozenset(value for value in named if isinstance(value, int) and not isinstance(value, bool))
