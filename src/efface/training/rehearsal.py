"""Will this run start? What `Trainer.train` would refuse is found before anything of an earlier run is touched.

A file of its own, short as it is: it alone knows what of `Trainer` has to be called, and forgotten, to find that out.
"""

from transformers.utils import is_liger_kernel_available

from efface.errors import UserError
from efface.model.devices import keep_random_state
from efface.training.settings import user_error_for_settings
from efface.training.trainer import PairTrainer


def rehearse(trainer: PairTrainer) -> None:
    """Make the data loader, the optimizer and the scheduler as training will, and forget them.

    (A first batch the trainer has made when it chose its layout.) Nothing is trained, and no random number is used up.

    Raises:
        UserError: if the settings do not let training begin.
    """
    args = trainer.args
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("use_liger_kernel needs the package liger-kernel, which is not installed. Leave it out.")
    if args.eval_on_start and trainer.eval_dataset is None:
        raise UserError("eval_on_start=True: there is nothing to evaluate on (no eval_dataset). Leave it out.")
    with user_error_for_settings(ValueError, TypeError, ImportError), keep_random_state():
        loader = trainer.get_train_dataloader()
        if len(loader) == 0:
            raise UserError(
                f"{len(trainer.train_dataset)} pairs give no whole batch of "  # type: ignore[arg-type]
                f"{args.per_device_train_batch_size} on {args.world_size} process(es), and dataloader_drop_last=True "
                "drops all others. Lower per_device_train_batch_size, or leave it out."
            )
        steps = trainer.set_initial_training_values(args, loader)[-1]
        try:
            trainer.create_optimizer()
            trainer.create_scheduler(num_training_steps=steps)
        finally:
            trainer.optimizer = trainer.lr_scheduler = None
            trainer._created_lr_scheduler = False
