"""The tables of a recipe that say who learns, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from .tables import LATER, Count, Share, Table

__all__ = ["StudentSettings", "TrainSettings"]


class StudentSettings(Table):
    """Who learns."""

    backend: Literal["torch", "mlx"] = "torch"
    model: str
    """A catalogue name, `org/repo` on the hub, or a path to a Hugging Face folder or a GGUF file."""
    init: Literal["model", "prune"] = "model"
    """`prune` takes out layers of the model first; training, best with a soft loss, heals what that broke."""
    keep_layers: Count | None = None
    """For `prune`: layers that stay, evenly spread, the first and the last among them."""
    keep_feed_forward: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] = 1.0
    """For `prune`: share of each feed-forward layer's width that stays, the most active on the training texts."""
    system: str = ""
    """The student's own system text, in training and afterwards. Short is fast."""
    thinking: Annotated[StrictBool | None, LATER] = None
    """Whether it thinks before it answers, by its template's switch; left out, as the template has it by default."""

    @model_validator(mode="after")
    def prunes_or_not(self) -> StudentSettings:
        if (self.init == "prune") != (self.keep_layers is not None):
            raise ValueError('keep_layers belongs to init = "prune", which needs it')
        if self.init != "prune" and self.keep_feed_forward != 1.0:
            raise ValueError('keep_feed_forward belongs to init = "prune"')
        return self


class TrainSettings(Table):
    """How the student learns."""

    method: Literal["lora", "dora", "qlora", "full"] = "lora"
    """An adapter on frozen weights (`dora` learns magnitudes too, `qlora` holds the base in 4 bits), or all weights."""
    loss: Literal["hard", "soft", "mixed"] = "hard"
    """Learn the teacher's text, its distribution over tokens (or over the closed set of answers), or both."""
    ce_weight: Share = 0.5
    """For `mixed`: weight of the text's cross entropy; the distribution has the rest."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """For distributions over tokens: the distance from the teacher's that is made small."""
    beta: Annotated[StrictFloat, Field(gt=0.0, lt=1.0)] = 0.5
    """For `jsd`: weight of KL(teacher || mixture), and of the teacher in the mixture."""
    temperature: Annotated[StrictFloat, Field(gt=0.0)] = 1.0
    """For distributions over tokens: both are softened by it before they are compared."""
    answer_temperature: Annotated[StrictFloat, Field(gt=0.0)] = 1.0
    """For closed answers: the teacher's probabilities p become p^(1/T), normalised."""
    answer_floor: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.01
    """For closed answers: less probable ones are not learned."""
    epochs: Count = 3
    learning_rate: Annotated[StrictFloat, Field(gt=0.0)] = 1e-3
    warmup_share: Share = 0.05
    """Share of the steps in which the learning rate rises from 0; then it falls to 0 along a cosine."""
    weight_decay: Annotated[StrictFloat, Field(ge=0.0)] = 0.0
    batch_size: Count = 16
    micro_batch: Annotated[StrictInt, Field(ge=0)] = 0
    """Examples computed at once, whose gradients are added up to a batch; 0 takes what fits into memory."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations twice instead of keeping them; `auto` where they would not fit."""
    compile: Annotated[StrictBool, LATER] = False
    """For `torch` on CUDA: compile the layers, which takes minutes once and makes each step faster."""
    packing: StrictBool = False
    """Lay the examples of a batch end to end in one sequence, each seeing itself alone, instead of padding them."""
    patience: Annotated[StrictInt, Field(ge=0)] = 0
    """Stop after so many epochs in which the loss on valid.jsonl did not fall, and keep the best; 0 never stops."""
    score_prompts: Annotated[StrictInt, Field(ge=0)] = 0
    """Eval prompts that the student answers after each epoch, for the curve of its score."""
    rank: Count = 16
    alpha: Annotated[StrictFloat, Field(gt=0.0)] = 32.0
    """LoRA weight: the update is scaled by alpha / rank, as in PEFT."""
    dropout: Annotated[StrictFloat, Field(ge=0.0, lt=1.0)] = 0.0
    max_length: Count = 1024
    """Longest example in tokens; a longer one is refused by name, never cut."""
    checkpoint_steps: Count = 25
    """Optimizer steps between two checkpoints."""
