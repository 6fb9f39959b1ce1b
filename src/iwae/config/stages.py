"""The stages of a run, as a table of an experiment file each or in one line of text."""

import tomllib
from typing import Annotated, Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iwae.config.setting_errors import first_setting_error, unknown_setting_error
from iwae.config.types import OptimizerName, ScheduleName
from iwae.objectives.declaration import BetaSchedule, EncoderObjective, Phase


class StageConfig(BaseModel):
    """A stage of a run. It inherits the settings that it omits from the run.

    If it names another objective than the run, it does not inherit the options that are specific
    to an objective (`gradient`, `m`, `alpha`, ...): these are its own or the objective's defaults.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    objective: str | None = None
    k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    gradient: str | None = None
    backward: Annotated[int, Field(ge=1)] | None = None
    m: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    alpha: float | None = None
    beta: float | Literal["learned"] | None = None
    gamma: float | None = None
    temperatures: Annotated[int, Field(ge=1)] | None = None
    leapfrog: Annotated[int, Field(ge=1)] | None = None
    beta_schedule: BetaSchedule | None = None
    phase: Phase | None = None
    encoder_objective: EncoderObjective | None = None
    kl_warmup: Annotated[int, Field(ge=0)] | None = None
    free_bits: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    chunk: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    optimizer: OptimizerName | None = None
    fresh: bool | None = None
    """Reset the optimiser; by default, only where its state does not fit this stage."""
    schedule: ScheduleName | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    lr_end: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    lr_warmup: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    epochs: Annotated[int, Field(ge=1)]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(unknown_setting_error(str(key), cls.model_fields))
        return values

    def given(self) -> dict[str, Any]:
        """The settings that the stage has of its own."""
        return self.model_dump(exclude_none=True)


def stages_from_text(text: str) -> tuple[StageConfig, ...]:
    """Parse stages from a line such as `iwae k=5 epochs=100, iwae k=50 backward=8 epochs=20`.

    Raises:
        ValueError: names the first word that is not a setting of a stage, or has a wrong value.
    """
    return tuple(_parse_stage(words.split(), i) for i, words in enumerate(text.split(","), 1))


def _parse_stage(words: list[str], number: int) -> StageConfig:
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals and not values:
            name, value = "objective", word
        elif not equals:
            raise ValueError(
                f"stage {number}: {word!r} is not a setting: give one such as epochs=10"
            )
        if name not in StageConfig.model_fields:
            raise ValueError(
                f"stage {number}: {unknown_setting_error(name, StageConfig.model_fields)}"
            )
        if name in values:
            raise ValueError(f"stage {number}: {name} is given twice")
        values[name] = _toml_value(value)
    if "epochs" not in values:
        raise ValueError(f"stage {number} needs epochs, such as epochs=10")
    try:
        return StageConfig(**values)
    except ValidationError as error:
        raise ValueError(f"stage {number}: {first_setting_error(error)}") from error


def _toml_value(word: str) -> Any:
    """The value of a word in TOML, or the word itself where it has none."""
    try:
        return tomllib.loads(f"value = {word}")["value"]
    except tomllib.TOMLDecodeError:
        return word


def stages_text(stages: tuple[StageConfig, ...]) -> str:
    """The inverse of `stages_from_text`."""
    return ", ".join(_stage_text(stage) for stage in stages)


def _stage_text(stage: StageConfig) -> str:
    given = {name: str(value) for name, value in stage.given().items()}
    given |= {name: value.lower() for name, value in given.items() if name == "fresh"}
    first = [given.pop("objective")] if "objective" in given else []
    return " ".join([*first, *(f"{name}={value}" for name, value in given.items())])


StagesText = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="STAGES",
    instance_from_str=lambda words: stages_from_text(words[0]),
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda stages: [stages_text(stages or ())],
)
"""The command line's parser of stages."""
