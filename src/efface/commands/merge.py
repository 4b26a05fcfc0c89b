"""`efface merge ADAPTER -o DIR`"""

import argparse
from typing import Any

from efface.commands.early import check_named
from efface.commands.options import MODEL_HELP
from efface.commands.printing import show
from efface.errors import UserError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "merge",
        help="an adapter, merged into its base",
        description="Write the model that a LoRA adapter and its base are together, as an ordinary checkpoint, in the "
        "precision of the base.",
    )
    command.add_argument("model", metavar="ADAPTER", help=MODEL_HELP)
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="where the checkpoint goes")
    command.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    command.set_defaults(run=run, refuse=check_named)


def run(options: argparse.Namespace) -> None:
    from efface.files.manifest import write_manifest
    from efface.files.results import RESULTS, check_output_dir, prepare_output_dir, write_json
    from efface.model.card import record_of, write_card
    from efface.model.copies import merged
    from efface.model.load import load_model
    from efface.model.save import save_model

    check_output_dir(options.output, overwrite=options.overwrite, resume=None, inputs=[options.model])
    model, tokenizer = load_model(options.model, dtype="auto", device="cpu")
    if not hasattr(model, "peft_config"):
        raise UserError(f"model {options.model!r} has no adapter: there is nothing to merge.")
    record, whole = record_of(options.model), merged(model)
    output = prepare_output_dir(options.output, overwrite=options.overwrite, resume=None)
    save_model(whole, tokenizer, output)
    if record is not None:  # how the adapter was trained is how the merged model was
        write_json(output / RESULTS, record | {"merged": True})
        write_card(output)
    else:
        write_manifest(output)
    show(f"written: {output}")
