"""``forgetkit.training_log`` for a ``transformers.Trainer``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from forgetkit.errors import DataError
from forgetkit.training_log import AmnesiacLog, Sensitive

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger("forgetkit")


def trainer_callback(
    folder: str | Path, *, sensitive: Sensitive = None, key: str = "positions", resume: bool = False
) -> TrainerCallback:
    """Return a callback that logs every step of a ``transformers.Trainer``.

    Wrap the training set in ``forgetkit.training_log.Numbered`` and set
    ``remove_unused_columns=False``, so that the positions reach the model call; there they are
    taken out again. What the log will take on disk is stated before the first step.

    Args:
        folder: for the files; created when absent.
        sensitive: positions that may have to be forgotten one day, or a function that says so of a
            position; ``None`` tracks all of them.
        key: name of the entry that holds the positions.
        resume: whether to go on with a log that is already in the folder, from the checkpoint that
            the trainer resumes from: files of later steps are set aside.
    """
    from transformers import TrainerCallback

    class LogCallback(TrainerCallback):
        """Opens the log when training begins and closes it when it ends."""

        def __init__(self) -> None:
            self._log: AmnesiacLog | None = None
            self._handle: RemovableHandle | None = None

        def on_train_begin(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **kwargs: Any,  # noqa: ANN401  as Trainer declares it
        ) -> None:
            self.close()
            model = kwargs["model"]
            samples = len(kwargs["train_dataloader"].dataset)
            self._log = AmnesiacLog(
                model, kwargs["optimizer"], folder, sensitive=sensitive, samples=samples,
                resume=resume and state.global_step,
            )  # fmt: skip
            size = state.train_batch_size or args.per_device_train_batch_size
            size *= args.gradient_accumulation_steps * args.world_size
            of_an_epoch = -(-samples // size)
            storage = self._log.expect(samples, size, state.max_steps / of_an_epoch)
            logger.warning("%s: the training log will take %s", folder, storage)
            self._handle = model.register_forward_pre_hook(
                self._announce, with_kwargs=True, prepend=True
            )

        def on_step_begin(
            self,
            args: TrainingArguments,  # noqa: ARG002
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **_: Any,  # noqa: ANN401
        ) -> None:
            if self._log is not None:  # steps that a scaler skips count in a checkpoint's number
                self._log.steps = state.global_step

        def _announce(
            self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[object, ...], dict[str, Any]]:
            rest = {name: value for name, value in kwargs.items() if name != key}
            if model.training and self._log is not None:
                if key not in kwargs:
                    self.close()  # training breaks here, and the model may be trained again
                    raise DataError(
                        f"trainer_callback(key={key!r}): expected positions in every batch, found "
                        f"{', '.join(kwargs) or 'nothing'}; wrap the training set in Numbered and "
                        "set remove_unused_columns=False"
                    )
                self._log.batch(kwargs[key])
            return args, rest

        def on_train_end(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **_: Any,  # noqa: ANN401
        ) -> None:
            best = state.best_model_checkpoint  # whose weights the trainer has loaded by now
            if self._log is not None and args.load_best_model_at_end and best is not None:
                self._log.rewind(int(best.rpartition("-")[2]))
            self.close()

        def close(self) -> None:
            """Remove both hooks; call it yourself when training broke."""
            if self._log is not None:
                self._log.close()
            if self._handle is not None:
                self._handle.remove()
            self._log = self._handle = None

    return LogCallback()
