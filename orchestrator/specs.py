"""The parts of a recipe: data, teacher, space, limits, resources and stages, each a mapping of plain values."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from spaces.domains import is_domain_config
from spaces.errors import unknown
from trainables.regimes import REGIMES
from trainables.speed import Compile, Precision


class Model(BaseModel):
    """Plain values that do not change; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSpec(Model):
    """The images (see `trainables.data`)."""

    dataset: str
    path: str | None = None
    image_size: int | None = Field(None, ge=4, le=2048)
    subset: int | None = Field(None, ge=2)  # training images
    valid: int | None = Field(None, ge=2)  # validation images
    valid_fraction: float | None = Field(None, gt=0, lt=1)
    test_subset: int | None = Field(None, ge=2)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_column: str | None = None
    label_column: str | None = None
    download: bool = True
    seed: int = 0


class TeacherSpec(Model):
    """The teacher (see `trainables.teachers`): one of space, timm, torchvision; weights from one place."""

    space: str | None = None
    arch: dict[str, Any] = {}
    options: dict[str, Any] = {}
    timm: str | None = None
    torchvision: str | None = None
    weights: str | None = None
    train_epochs: int = Field(0, ge=0)
    random: bool = False
    pretrained: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0


class SpaceSpec(Model):
    """A student space, by name or in a file (see `spaces.own`), with some choices replaced and builder options set."""

    name: str | None = None
    file: str | None = None
    choices: dict[str, Any] = {}
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one(self) -> "SpaceSpec":
        if (self.name is None) == (self.file is None):
            raise ValueError("a space has either a name or a file")
        return self


class Limits(Model):
    """What a student may cost at most."""

    params: float | None = Field(None, gt=0)
    flops: float | None = Field(None, gt=0)
    bytes: float | None = Field(None, gt=0)
    latency_ms: float | None = Field(None, gt=0)

    def given(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ReplaySpec(Model):
    """Recorded results in place of trainings: see `orchestrator.replay`."""

    table: str  # a Parquet file
    where: dict[str, Any] = {}  # the rows that count: values by column


class Rivals(Model):
    """Random students, about as large as the best survivor, that are distilled beside the survivors: their control."""

    count: int = Field(ge=1)
    within: float = Field(0.1, gt=0, lt=1)  # share by which their parameter counts may differ from his


class Resources(Model):
    """What one trial takes; fractions of a GPU let several trials share it."""

    cpu: float = Field(1, gt=0)
    gpu: float = Field(0, ge=0)
    compile: Compile = "none"  # students by torch.compile, which takes its time for each


class TensorBoardSpec(Model):
    """Event files in the run's directory; nothing to choose."""


class MLflowSpec(Model):
    """Where MLflow keeps runs; without `uri` as its environment says (MLFLOW_TRACKING_URI)."""

    uri: str | None = Field(None, min_length=1)
    experiment: str = Field("dux", min_length=1)


class WandbSpec(Model):
    """A project of Weights & Biases; without `mode` as its environment says (WANDB_MODE), and else online."""

    project: str = Field("dux", min_length=1)
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None


class OptunaSpec(Model):
    """A journal for each stage, which optuna-dashboard opens; nothing to choose."""


class TrackingSpec(Model):
    """The tools that a search is sent to (see `orchestrator.tracking`); in a recipe also a name, or a list of names."""

    tensorboard: TensorBoardSpec | None = None
    mlflow: MLflowSpec | None = None
    wandb: WandbSpec | None = None
    optuna: OptunaSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list):
            for name in names:
                if not isinstance(name, str) or name not in cls.model_fields:
                    raise unknown("tool", name, cls.model_fields)
            return {name: {} for name in names}
        # A tool with nothing behind its colon is wanted, too.
        return {name: {} if own is None else own for name, own in value.items()} if isinstance(value, dict) else value

    def given(self) -> list[str]:
        """The tools that are named."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Named(BaseModel):
    """A method by name, with its settings: `tpe`, or `{name: evolution, population: 30}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


Method = Annotated[Named, BeforeValidator(_named)]


class StageSpec(Model):
    """One stage of a run.

    Omitted `regime`, `losses`, `optimizer`, `batch_size`, `augment` and `precision` are those of the distillation stage
    before; a stage with a regime of its own that gives no losses has that regime's.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)
    trial: Literal["score", "distill"]
    trials: int | None = Field(None, ge=1)  # proposals; default: every candidate once
    keep: int | None = Field(None, ge=1)  # how many go on to the next stage
    sampler: Method = Named(name="random")
    scheduler: Method = Named(name="none")
    objective: dict[str, float] | None = None  # weights of metrics, or of scores
    pareto: list[str] = []  # several objectives at once: columns whose trade-offs the sampler searches
    seeds: int = Field(1, ge=1)
    # Scoring
    scores: dict[str, dict[str, Any]] | None = None
    score_batch: int = Field(64, ge=2)
    ensemble: list[str] | None = Field(None, min_length=1)  # the scores behind `ensemble.rank` and `ensemble.vote`
    teacher: Literal["given", "random"] = "given"  # random: as it was initialised (of a space: before any training)
    # Distillation
    epochs: int | None = Field(None, ge=1)
    control: bool = False  # train the same students without the teacher too
    rivals: Rivals | None = None
    regime: dict[str, Any] | None = None
    losses: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    batch_size: Any = None
    augment: dict[str, Any] | None = None
    precision: Precision | None = None  # in which student and teacher compute while it learns

    @field_validator("regime", mode="before")
    @classmethod
    def _named_regime(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) or is_domain_config(value) else value

    @field_validator("scores", mode="before")
    @classmethod
    def _listed_scores(cls, value: object) -> object:
        """A list of names, some with settings, as a mapping."""
        if not isinstance(value, list):
            return value
        entries = [{entry: {}} if isinstance(entry, str) else entry for entry in value]
        if not all(isinstance(entry, dict) and len(entry) == 1 for entry in entries):
            raise ValueError("a score is a name, or a name with its settings")
        names = [name for entry in entries for name in entry]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"score {twice[0]!r} stands twice")
        return {name: settings or {} for entry in entries for name, settings in entry.items()}

    @model_validator(mode="after")
    def _kinds(self) -> "StageSpec":
        distilling = {
            "epochs",
            "control",
            "rivals",
            "regime",
            "losses",
            "optimizer",
            "batch_size",
            "augment",
            "precision",
            "scheduler",
        }
        scoring = {"scores", "score_batch", "ensemble", "teacher"}
        wrong = {"score": distilling, "distill": scoring}[self.trial] & self.model_fields_set
        if wrong:
            raise ValueError(f"stage {self.name!r}: a {self.trial} stage takes no {', '.join(sorted(wrong))}")
        if self.trial == "score" and not self.scores:
            raise ValueError(f"stage {self.name!r}: a score stage needs scores")
        if self.trial == "distill" and self.epochs is None:
            raise ValueError(f"stage {self.name!r}: a distill stage needs epochs")
        return self

    def settings(self) -> dict[str, Any]:
        """Regime, losses, optimiser, batch size, augmentation, precision; domains where something is searched."""
        return {name: getattr(self, name) for name in DEFAULTS}


DEFAULTS: dict[str, Any] = {
    "regime": {"name": "offline"},
    "losses": dict(REGIMES["offline"].losses),
    "optimizer": {},
    "batch_size": 64,
    "augment": {},
    "precision": "float32",
}
