"""How a model inside vLLM takes new weights: `begin`, `load_part` as often as it takes, `finish`.

Each runs in every process of an engine, by `collective_rpc`. vLLM's own layerwise reload fits any
model, but takes 12 to 24 ms on the CPU for 40 tensors, nearly all of it Python. A plain model needs
none of it: its linear layers, which are packed, get unpacked weights for as long as the load takes,
all of them at once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_layer, restore_layer_on_meta

PACKED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


def begin(worker: Any) -> None:
    """Make the model ready for tensors under the names and shapes of its checkpoint."""
    model = worker.get_model()
    packed = _packed_layers(model)
    with set_current_vllm_config(worker.vllm_config):
        if packed is None:
            _forget_cpu_kernels(model)
            initialize_layerwise_reload(model)
            return
        for layer in packed:
            _unpack(layer)


def load_part(worker: Any, part: list[tuple[str, Tensor]]) -> None:
    """Load some of the tensors; all of them have to come before `finish`."""
    with set_current_vllm_config(worker.vllm_config), torch.no_grad():
        worker.get_model().load_weights(part)


def finish(worker: Any) -> None:
    """Make the model ready to compute."""
    model = worker.get_model()
    packed = _packed_layers(model)
    with set_current_vllm_config(worker.vllm_config):
        if packed is None:
            finalize_layerwise_reload(model, worker.vllm_config.model_config)
            return
        for layer in packed:  # also a head that is tied: the CPU's GEMM keeps a copy of its own
            layer.quant_method.process_weights_after_loading(layer)


def _packed_layers(model: nn.Module) -> list[Any] | None:
    """The layers that the CPU's GEMM computes from a packed copy of their weights.

    None on a GPU, and where vLLM has something else to process after a load.
    """
    if next(model.parameters()).device.type != "cpu":
        return None
    packed = []
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, PACKED):
            packed.append(layer)
        elif isinstance(method, QuantizeMethodBase) or _other_attention(layer):
            return None
    return packed


def _forget_cpu_kernels(model: nn.Module) -> None:
    """Let kernels of experts be made anew: on a CPU they pack the weights only as they are made."""
    if next(model.parameters()).device.type != "cpu":
        return
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _other_attention(layer: nn.Module) -> bool:
    return isinstance(layer, AttentionLayerBase) and type(layer) is not Attention


def _unpack(layer: Any) -> None:
    """Give a layer weights to load into, where packing took them away."""
    if not layer.weight.numel():
        info = get_layerwise_info(layer)
        restore_layer_on_meta(layer, info)
        materialize_layer(layer, info)
