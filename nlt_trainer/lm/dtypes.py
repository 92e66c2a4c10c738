"""Which numbers an LLM is read in: bfloat16 where the machine multiplies it, else float32."""

from __future__ import annotations

import torch

from nlt_trainer.choices import LLMDtype


def resolved_dtype(dtype: LLMDtype, device: str | torch.device | None = None) -> str:
    """What `auto` means on a device; another dtype stays as it is.

    Log-likelihoods of a small LLM in bfloat16 differ from those in float32 by 0.1 nats a token, but alike with a
    document and without one, so that gains differ by 0.02 and rank candidates as before.

    Args:
        dtype: of the recipe.
        device: on which the LLM will be; `None` means CUDA where there is one, else the CPU.

    Returns:
        `bfloat16` on a GPU and on a CPU that multiplies it (AMX or AVX512-BF16), else `float32`.
    """
    if dtype != "auto":
        return dtype
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        multiplies = any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    else:
        multiplies = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if multiplies else "float32"
