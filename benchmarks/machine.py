"""What a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "")
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model or platform.processor()}, {os.cpu_count()} cores, {', '.join(known) or 'no avx2'}"
