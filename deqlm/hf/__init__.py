"""The Hugging Face side: configurations, models, generation and files; importing it registers both families."""

from __future__ import annotations

try:
    import safetensors  # noqa: F401
    import transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"deqlm.hf needs the package {error.name!r}: pip install 'deqlm[hf]'", name=error.name
    ) from error
if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 3):
    # earlier releases rename every weight_g and weight_v of a file
    raise ImportError(f"deqlm.hf needs transformers >= 5.3, found {transformers.__version__}: pip install 'deqlm[hf]'")

from deqlm.hf.cache import DecodeCache
from deqlm.hf.config import ImplicitConfig, ImplicitLlamaConfig, ImplicitMamba2Config
from deqlm.hf.convert.authors import import_implicit_llm
from deqlm.hf.convert.authors_export import export_implicit_llm
from deqlm.hf.convert.authors_report import ImportReport
from deqlm.hf.convert.to_implicit import to_implicit
from deqlm.hf.convert.upstream import from_upstream
from deqlm.hf.evaluation import evaluation
from deqlm.hf.generation import ImplicitGenerationMixin
from deqlm.hf.looped import load_looped
from deqlm.hf.model import (
    ImplicitForCausalLM,
    ImplicitLlamaForCausalLM,
    ImplicitLlamaModel,
    ImplicitMamba2ForCausalLM,
    ImplicitMamba2Model,
    ImplicitModel,
)
from deqlm.hf.output import ImplicitCausalLMOutput, ImplicitModelOutput
from deqlm.hf.pretrained import ImplicitPreTrainedModel
from deqlm.hf.register import register
from deqlm.hf.solving import DeqOptions, Grad, NoGrad

__all__ = [
    "DecodeCache",
    "DeqOptions",
    "Grad",
    "ImplicitCausalLMOutput",
    "ImplicitConfig",
    "ImplicitForCausalLM",
    "ImplicitGenerationMixin",
    "ImplicitLlamaConfig",
    "ImplicitLlamaForCausalLM",
    "ImplicitLlamaModel",
    "ImplicitMamba2Config",
    "ImplicitMamba2ForCausalLM",
    "ImplicitMamba2Model",
    "ImplicitModel",
    "ImplicitModelOutput",
    "ImplicitPreTrainedModel",
    "ImportReport",
    "NoGrad",
    "evaluation",
    "export_implicit_llm",
    "from_upstream",
    "import_implicit_llm",
    "load_looped",
    "register",
    "to_implicit",
]

register()
