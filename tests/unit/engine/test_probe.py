"""What the machine says about itself."""

import pytest

from llmws.engine.devices import missing_arch
from llmws.engine.host import cpu_name, host_memory
from llmws.engine.probe import DeviceProbe
from llmws.engine.scripted import model_info
from llmws.engine_api import ModelRef
from llmws.protocol.messages import EngineResources, ModelSummary

MODEL = ModelRef(name="m", path="models/m", location="/models/m", size_bytes=5_000_000, source="models")
IDLE = EngineResources(running=0, queued=0, tokens_per_s=0.0)


def test_without_a_gpu_the_device_is_the_processor():
    device = DeviceProbe("cpu").summary()

    assert device.device == cpu_name()
    assert 0 < device.free_gb <= device.total_gb


def test_resources_name_the_model_and_the_host():
    models = [MODEL.to_entry(loaded=True)]
    resources = DeviceProbe("cpu").resources(model_info(MODEL), models, IDLE)

    assert resources.cuda is None
    assert resources.model == ModelSummary(name="m", path="models/m", vision=False)
    assert (resources.available_models, resources.engine) == (models, IDLE)
    assert resources.host.ram_gb == round(host_memory()[0] / 1e9, 1)


def test_without_a_model_its_name_is_null():
    assert DeviceProbe("cpu").resources(None, [], IDLE).model == ModelSummary(name=None, path=None, vision=False)


@pytest.mark.parametrize(
    ("capability", "arch_list"),
    [
        ((9, 0), ["sm_80", "sm_90"]),
        ((8, 9), ["sm_80"]),
        ((12, 0), ["sm_90", "sm_120"]),
        ((9, 0), ["sm_90a"]),
        ((12, 1), ["sm_80", "compute_120"]),
    ],
)
def test_code_for_the_gpu_is_found(capability, arch_list):
    assert missing_arch(capability, arch_list) is None


@pytest.mark.parametrize(
    ("capability", "arch_list"),
    [((6, 1), ["sm_75", "sm_80"]), ((8, 0), ["sm_86"]), ((12, 0), ["sm_90", "compute_130"])],
)
def test_a_gpu_without_code_is_named_with_the_way_out(capability, arch_list):
    message = missing_arch(capability, arch_list)

    assert f"compute capability {capability[0]}.{capability[1]}" in message
    assert "set optimization.device to cpu" in message
