"""ONNX Runtime's CANN and CUDA providers, as far as they can be tested without one: what the
runtime is told, and what is refused.
"""

from types import SimpleNamespace

import pytest

from gma_lib.backends.onnxruntime import CANN, CPU, CUDA, OnnxRuntimeBackend, OnnxRuntimeOptions


class Settings:
    """Stands for ``onnxruntime.SessionOptions``."""

    def __init__(self):
        self.entries = {}

    def add_session_config_entry(self, name, value):
        self.entries[name] = value


def runtime(*, available=(CANN, CPU), runs=(CANN, CPU), computes=None):
    """A module in place of onnxruntime whose sessions remember what they were told."""
    sessions = []

    class InferenceSession:
        def __init__(self, path, settings, providers):
            self.path, self.settings, self.told = path, settings, providers
            sessions.append(self)

        def get_providers(self):
            return list(runs)

        def get_provider_options(self):
            return {
                provider: dict(options) if computes is None else dict.fromkeys(options, computes)
                for provider, options in self.told
            }

        def get_inputs(self):
            return [SimpleNamespace(name="image1", shape=[1, 3, 128, 160])]

    return SimpleNamespace(
        InferenceSession=InferenceSession,
        SessionOptions=Settings,
        get_available_providers=lambda: list(available),
        sessions=sessions,
    )


@pytest.fixture
def load(tmp_path, monkeypatch):
    (tmp_path / "gma.onnx").write_bytes(b"a model")

    def load(fake, precision="float32", provider=CANN):
        monkeypatch.setattr("gma_lib.backends.onnxruntime.onnxruntime", fake)
        return OnnxRuntimeBackend(
            tmp_path / "gma.onnx", OnnxRuntimeOptions(precision=precision, provider=provider)
        )

    return load


def test_float32_with_cuda_is_not_tf32(load):
    """The provider's default is TF32."""
    fake = runtime(available=(CUDA, CPU), runs=(CUDA,))
    assert load(fake, provider=CUDA).precision == "float32"
    assert fake.sessions[0].told == [(CUDA, {"use_tf32": "0"})]
    with pytest.raises(RuntimeError, match=r"use_tf32=0.* 1$"):
        load(runtime(available=(CUDA, CPU), runs=(CUDA,), computes="1"), provider=CUDA)


def test_a_provider_whose_precision_is_not_known(load):
    other = "TensorrtExecutionProvider"
    with pytest.raises(ValueError, match=f"{CPU}, {CUDA} or {CANN}, not {other}"):
        load(runtime(available=(other, CPU), runs=(other,)), provider=other)


@pytest.mark.parametrize(
    ("precision", "mode"), [("float32", "must_keep_origin_dtype"), ("float16", "force_fp16")]
)
def test_what_the_runtime_is_told(load, precision, mode):
    """The default is force_fp16, so the precision is always said; an operator may not
    go to the CPU.
    """
    fake = runtime()
    backend = load(fake, precision)
    assert (backend.device, backend.precision) == (CANN, precision)
    session = fake.sessions[0]
    assert session.told == [
        (CANN, {"precision_mode": mode})
    ]  # the CPU is not offered as a second one
    assert session.settings.entries == {"session.disable_cpu_ep_fallback": "1"}


def test_a_build_without_the_provider(load):
    with pytest.raises(ValueError, match=rf"this onnxruntime has no {CANN}; it has {CPU}"):
        load(runtime(available=(CPU,)))


def test_a_silent_fall_back_is_an_error(load):
    """CANN is not sourced, and the session runs on the CPU without a word."""
    with pytest.raises(RuntimeError, match=f"{CANN} was asked for, and {CPU} would run"):
        load(runtime(runs=(CPU,)))


def test_another_precision_than_asked_is_an_error(load):
    with pytest.raises(RuntimeError, match=r"must_keep_origin_dtype.*force_fp16"):
        load(runtime(computes="force_fp16"))


def test_a_precision_that_it_has_not(load):
    with pytest.raises(ValueError, match="computes in float32 or float16, not bfloat16"):
        load(runtime(), "bfloat16")


def test_the_real_runtime_refuses_to_fall_back(tmp_path):
    """With a provider that every build has, and one that takes nothing: the setting is known to the
    installed version, too.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build has no provider that takes nothing")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "m.onnx",
    )
    one = object.__new__(OnnxRuntimeBackend)
    one.options = OnnxRuntimeOptions(provider="AzureExecutionProvider")
    with pytest.raises(Exception, match=r"[Ff]allback"):
        one._open(tmp_path / "m.onnx")
    one.options = OnnxRuntimeOptions(provider=CPU)
    assert one._open(tmp_path / "m.onnx").get_providers() == [CPU]
