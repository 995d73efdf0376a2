"""Many cases, one after the other: skips what is done, goes on past a bad one, and says at the end which those were."""

from __future__ import annotations

import logging
from pathlib import Path

from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from tqdm import tqdm

from scripts.command_line import first_cause
from scripts.errors import InputError
from scripts.writers import DONE


def run_cases(evaluator: SupervisedEvaluator, dataset: Dataset, output_dir: str | Path, overwrite: bool = False) -> list[str]:
    """Run an evaluator on the cases of a data set, each for itself.

    Args:
        evaluator: its postprocessing writes a case to `<output_dir>/<case>/`.
        dataset: of a data list, each item with a "case".
        output_dir: folder of the cases.
        overwrite: whether to run a case again that is there already; a single one always is.

    Returns:
        The names of the cases that were run.

    Raises:
        InputError: at the end, with the names of the cases that failed and the first one's reason.
    """
    logger, done, failed = logging.getLogger("inference"), [], {}
    # A failed case is reported by one line, not by the engine's traceback as well.
    evaluator.logger.setLevel(logging.CRITICAL)
    # Ignite would resume a run that failed, and so skip the next case; and it would keep the length of the first data loader.
    evaluator.interrupt_resume_enabled = False
    evaluator.state.epoch_length = 1
    # A single case was asked for by its files and options: what lies there may come from others.
    overwrite = overwrite or len(dataset.data) == 1
    waiting = [n for n, item in enumerate(dataset.data) if overwrite or not is_done(output_dir, item)]
    if len(waiting) < len(dataset.data):
        logger.info(
            f"{len(dataset.data) - len(waiting)} of {len(dataset.data)} cases are done already; --overwrite True runs them again"
        )
    bar = tqdm(waiting, desc="cases", unit="case")
    for number in bar:
        name = str(dataset.data[number]["case"])
        bar.set_postfix_str(name)
        evaluator.data_loader = DataLoader(Dataset([dataset.data[number]], dataset.transform), batch_size=1)
        try:
            evaluator.run()
            done.append(name)
        except Exception as error:
            if len(dataset.data) == 1:
                raise
            failed[name] = first_cause(error)
            tqdm.write(f"{name}: failed, {failed[name]}")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(dataset.data)} cases failed: {', '.join(failed)}; the first one: {next(iter(failed.values()))}"
        )
    return done


def is_done(output_dir: str | Path, item: dict) -> bool:
    """Whether a case's folder is there with all that is written."""
    return (Path(output_dir) / str(item["case"]) / DONE).is_file()
