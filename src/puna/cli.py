"""The `puna` program: arguments in; text, or with --json one document, out; 0, or 2 and one line that says what to do.

Every command is a parser and a function. Functions import what they need, so that `puna --help` needs no torch.
Standard output carries the result and nothing else; progress and errors go to standard error. Only this file reads
the environment:

PUNA_MODEL      the model that commands take when none is named, instead of cria
PUNA_DEVICE     where models run, as --device
PUNA_DTYPE      the numbers they run in, as --dtype
PUNA_API_KEY    the key that opens a server, where no --api-key-file is given
RANK            which process this is, where torchrun started several; WORLD_SIZE says how many
PUNA_TRACEBACK  set to 1, shows where a fault of puna itself happened
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from puna import __version__
from puna.errors import ConfigError, DeviceError, PromptError, PunaError

if TYPE_CHECKING:
    from torch import Tensor

    from puna.chat import Answer, Assistant, Options, Response
    from puna.config import LlamaConfig
    from puna.eval.ask import Model as EvalModel
    from puna.eval.opinion import ModelOpinion
    from puna.eval.run import Settings
    from puna.eval.suite import Suite
    from puna.guard.guard import Guard
    from puna.guard.guarded import Guarded
    from puna.guard.pipeline import Pipeline
    from puna.guard.policy import Policy
    from puna.model.transformer import Llama
    from puna.parallel import Layout
    from puna.plan.plan import ServePlan, TrainPlan, TunePlan
    from puna.prompt.message import Message
    from puna.quant.drift import Drift
    from puna.serve.batch import Summary
    from puna.train.loop import Outcome
    from puna.train.synthesize import Order

_SAMPLING = {
    "temperature": (float, "0 takes the most probable token; higher is bolder (default 0.6)"),
    "top_p": (float, "keep the most probable tokens that reach this mass (default 0.9)"),
    "top_k": (int, "keep this many tokens; 0 keeps all (default)"),
    "min_p": (float, "drop tokens less probable than this share of the best (default 0)"),
    "repetition_penalty": (float, "above 1 discourages every token seen (default 1)"),
    "presence_penalty": (float, "lowers tokens that were written, -2 to 2 (default 0)"),
    "frequency_penalty": (float, "lowers them once for every time, -2 to 2 (default 0)"),
    "seed": (int, "makes the answer repeatable"),
    "max_new_tokens": (int, "longest answer (default: what the context leaves)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0, 2 for bad usage or input, 130 for Ctrl-C, 1 for a fault of puna."""
    try:
        arguments = _parser().parse_args(argv)
        (_follow if "tensor" in arguments and _is_follower() else arguments.run)(arguments)
        sys.stdout.flush()
    except PunaError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more can be said
        return 1
    except OSError as error:
        return _refuse(
            f"{error.filename or 'input or output'}: {error.strerror or error}; check path, rights and space"
        )
    except Exception as error:
        return _fault(error)
    return 0


def _refuse(message: str) -> int:
    print(f"puna: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _fault(error: Exception) -> int:
    """Reports what puna did not expect: lack of memory, or a fault of its own."""
    if os.environ.get("PUNA_TRACEBACK") == "1":
        raise error
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return _refuse("not enough memory for this model: take a smaller one, a narrower --dtype or another --device")
    first = next(iter(str(error).splitlines()), "")
    print(f"puna: fault: {type(error).__name__}: {first} (PUNA_TRACEBACK=1 shows where)", file=sys.stderr)
    return 1


# Parsers ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="puna", description="Run, train and check Llama 4 models.")
    parser.add_argument("--version", action="version", version=f"puna {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_chat(commands)
    _add_complete(commands)
    _add_serve(commands)
    _add_batch(commands)
    _add_convert(commands)
    _add_quantize(commands)
    _add_params(commands)
    _add_prepare(commands)
    _add_haystack(commands)
    _add_train(commands)
    _add_tune(commands)
    _add_synthesize(commands)
    _add_eval(commands)
    _add_guard(commands)
    _add_prune_guard(commands)
    _add_bench(commands)
    _add_card(commands)
    _add_doctor(commands)
    _add_plan(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str
) -> argparse.ArgumentParser:
    """Returns the parser of a new command, which has --json as all have."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)
    return parser


def _add_chat(commands: Any) -> None:
    parser = _command(commands, "chat", _chat, "talk with a model, in a terminal or for one message")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory or hub id (default: cria, which ships with puna)"
    )
    parser.add_argument(
        "-m", "--message", metavar="TEXT", help="answer this and exit; without a terminal, read from stdin"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message; '' for none (default: one for large models)")
    _add_protection(parser)
    _add_making(parser)


def _add_complete(commands: Any) -> None:
    parser = _command(commands, "complete", _complete, "continue a text")
    parser.add_argument("text", metavar="TEXT", help="the text; - reads it from stdin")
    parser.add_argument("--model", metavar="MODEL", help="directory or hub id (default: cria, which ships with puna)")
    _add_protection(parser)
    _add_making(parser)


def _add_serve(commands: Any) -> None:
    parser = _command(commands, "serve", _serve, "answer over HTTP, in the shape of OpenAI's API")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory or hub id (default: cria)")
    parser.add_argument("--name", metavar="NAME", help="what clients call the model (default: the end of MODEL)")
    _add_adapters(parser, "a low-rank adapter over it, which clients call the model NAME; may be repeated")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default 8000)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="one key a line; clients need one of them")
    parser.add_argument(
        "--max-open", type=int, default=256, metavar="N", help="answers running or waiting; more get 429 (default 256)"
    )
    parser.add_argument(
        "--events-per-second",
        type=float,
        default=1000,
        metavar="N",
        help="of all streams together; with many, one event tells several tokens; 0: one event a token (default 1000)",
    )
    parser.add_argument(
        "--drain-seconds", type=int, default=60, metavar="N", help="for what runs when it is told to stop (default 60)"
    )
    parser.add_argument(
        "--request-seconds", type=float, metavar="N", help="end an answer that takes longer, waiting included"
    )
    parser.add_argument(
        "--image-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures from there over https; *.NAME for all below a name (default: fetch none)",
    )
    parser.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="let web pages of this origin ask (default: none)"
    )
    parser.add_argument("--no-page", action="store_true", help="leave the page at / out")
    parser.add_argument("--vllm-metrics", action="store_true", help="name metrics as vLLM does, for its dashboards")
    parser.add_argument("--system", metavar="TEXT", help="for conversations that have no system message; '' for none")
    parser.add_argument("--reports", type=Path, metavar="FILE", help="keep what clients report of answers: hashes only")
    _add_protection(parser)
    _add_machine(parser)


def _add_batch(commands: Any) -> None:
    parser = _command(commands, "batch", _batch, "answer a file of requests; the same command goes on where it stopped")
    parser.add_argument("source", metavar="IN", type=Path, help="JSON lines in the shape of OpenAI's batch files")
    parser.add_argument("target", metavar="OUT", type=Path, help="their answers, in the same order")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory or hub id (default: cria)")
    parser.add_argument("--name", metavar="NAME", help="what the requests call the model (default: the end of MODEL)")
    _add_adapters(parser, "a low-rank adapter over it, which requests call the model NAME; may be repeated")
    parser.add_argument(
        "--at-once", type=int, default=128, metavar="N", help="requests in progress, of each engine (default 128)"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster, one engine a worker: auto, or HOST:PORT"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="with --ray (default: one a GPU, or else a machine)")
    _add_protection(parser)
    _add_machine(parser)


def _add_convert(commands: Any) -> None:
    parser = _command(commands, "convert", _convert, "write a checkpoint in Hugging Face's or Meta's layout")
    parser.add_argument("source", metavar="SRC", help="directory or hub id of a checkpoint in either layout")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to make")
    parser.add_argument("--to", required=True, choices=("hf", "meta"), help="the layout to write")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="files of a Meta checkpoint (default 1)")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a low-rank adapter to merge into the weights")


def _add_quantize(commands: Any) -> None:
    parser = _command(commands, "quantize", _quantize, "write a checkpoint in smaller numbers, as vLLM reads them")
    parser.add_argument("source", metavar="SRC", help="directory or hub id of a checkpoint in any layout")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to make")
    parser.add_argument("--to", required=True, choices=("int4", "int8", "fp8"), help="the numbers to write")
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help="what becomes small: routed_experts shared_experts attention dense head (default: all but head)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="TEXT", help="a text on which to measure how far the model drifts"
    )


def _add_params(commands: Any) -> None:
    parser = _command(commands, "params", _params, "count parameters: in total, per token, and by part")
    parser.add_argument(
        "model", metavar="MODEL", help="scout, maverick, guard4, cria, or the directory of a checkpoint"
    )


_RUN_HELP = (
    "folder of the run (default runs/RECIPE); under torchrun only as --folder, for it has a --run-path of its own"
)


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", _train, "train a model as a recipe says, or go on where it stopped")
    parser.add_argument(
        "recipe", metavar="RECIPE", type=Path, help="a recipe, such as recipes/cria.toml; or the word watch, before RUN"
    )
    parser.add_argument("watched", metavar="RUN", nargs="?", type=Path, help="folder of a run to show in a browser")
    parser.add_argument("--run", "--folder", type=Path, metavar="DIR", dest="folder", help=_RUN_HELP)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take of each rank, and train nothing")
    parser.add_argument(
        "--coordinate-check", action="store_true", help="say whether rates transfer between toys of several sizes"
    )
    parser.add_argument(
        "--gpu-memory", type=float, default=80.0, metavar="GB", help="of one GPU, for --dry-run (default 80)"
    )
    parser.add_argument("--port", type=int, default=8090, help="where watch shows its page (default 8090)")


def _add_tune(commands: Any) -> None:
    parser = _command(commands, "tune", _tune, "tune a model as a recipe says, or go on where it stopped")
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a recipe, such as recipes/cria-instruct-sft.toml")
    parser.add_argument("--run", "--folder", type=Path, metavar="DIR", dest="folder", help=_RUN_HELP)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")


def _add_synthesize(commands: Any) -> None:
    parser = _command(commands, "synthesize", _synthesize, "have a model write training data, or go on with it")
    parser.add_argument("tasks", metavar="TASKS", nargs="+", help='chats in JSON lines with "answer", what is right')
    parser.add_argument("--model", default="cria", help="a name, a folder or a hub id (default cria)")
    parser.add_argument("--quantize", choices=("int4", "int8", "fp8"), help="smaller weights while it runs")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="conversations in JSON lines")
    parser.add_argument("--n", type=int, default=4, help="replies to each task (default 4)")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of a reply (default 256)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="they are drawn at (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same replies (default 1)")
    parser.add_argument("--least-reward", type=float, default=1.0, metavar="R", help="of what stays, 0..1 (default 1)")
    parser.add_argument("--best", action="store_true", help="of each task only the best reply stays")
    parser.add_argument(
        "--judge", default="", metavar="MODEL", help="a model that scores replies; it may be --model too"
    )
    parser.add_argument("--judge-prompt", type=Path, metavar="FILE", help="what it is told (default: a general scale)")
    parser.add_argument(
        "--least-score", type=float, default=0.75, metavar="S", help="of what stays, 0..1 (default 0.75)"
    )
    parser.add_argument(
        "--against", metavar="PATH", type=Path, action="append", default=[], help="evaluation sets to keep out"
    )


def _add_haystack(commands: Any) -> None:
    parser = _command(commands, "haystack", _haystack, "make long documents with things in them to be found or copied")
    parser.add_argument("inputs", metavar="IN", nargs="+", type=Path, help="files or folders of text, as for prepare")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines that puna train reads")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FILE", help="tokenizer.json, or its folder")
    parser.add_argument(
        "--length", type=int, action="append", required=True, metavar="N", help="tokens of a document; several in turn"
    )
    parser.add_argument("--documents", type=int, default=1000, metavar="N", help="of each kind (default 1000)")
    parser.add_argument("--told", type=int, default=4, metavar="N", help="things that a document tells (default 4)")
    parser.add_argument("--asked", type=int, default=2, metavar="N", help="of them asked for at its end (default 2)")
    parser.add_argument(
        "--only-asked", action="store_true", help="learn what was asked for, and not the text around it"
    )
    parser.add_argument("--seed", type=int, default=1, help="same seed, same documents (default 1)")


def _add_prepare(commands: Any) -> None:
    parser = _command(commands, "prepare", _prepare, "choose the texts worth training on, or go on where it stopped")
    parser.add_argument(
        "inputs", metavar="IN", type=Path, nargs="+", help="files or folders: JSON lines with `text`, or plain text"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for texts and report")
    parser.add_argument(
        "--against", metavar="PATH", type=Path, action="append", default=[], help="evaluation sets to keep out"
    )
    parser.add_argument("--safety", metavar="DIR", type=Path, help="child-safety lists (default: no such filter)")
    parser.add_argument("--languages", metavar="TAG[,..]", help="keep these, such as en,de (default: all)")
    parser.add_argument("--min-words", metavar="N", type=int, default=50, help="shortest text (default 50)")
    parser.add_argument(
        "--memory-mb", metavar="N", type=int, default=256, help="for comparing, beside the fixed part (default 256)"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes that read (default 1)")


def _add_prune_guard(commands: Any) -> None:
    parser = _command(commands, "prune-guard", _prune_guard, "write a dense guard, to be tuned, out of a Scout")
    parser.add_argument("source", metavar="SCOUT", help="directory or hub id of a checkpoint with routed layers only")
    parser.add_argument("destination", metavar="OUT", type=Path, help="directory to make")


def _add_guard(commands: Any) -> None:
    parser = _command(commands, "guard", _guard, "check texts or code, one verdict a line, in order")
    parser.add_argument("kind", choices=("content", "injection", "code", "hidden"), help="what to look for")
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="JSON lines with `text`, or `code` and `language`, or `messages`"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="for content a Llama Guard, for injection a Prompt Guard 2 (default: neither)"
    )


def _add_eval(commands: Any) -> None:
    parser = _command(commands, "eval", _eval, "measure what a model can do")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="directory or hub id (default: cria); with --url its name there"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--task", metavar="NAME[,..]", help="tasks, such as mmlu,mgsm; held_out: what cria's training held out"
    )
    what.add_argument(
        "--suite", metavar="NAME", help="card, base, chat, safety, redteam, critical, or a file with tasks"
    )
    what.add_argument("--compare", nargs=2, type=Path, metavar="RUN", help="two runs' folders: is the second better?")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of data; may be repeated (default: hub)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="items of each task, in turn from its groups (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run, which goes on there (default: runs/eval/..)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of answers that are drawn (default 0)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="items answered at a time (default 64)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer, where the task's is longer")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="safety.json of before: fail where it is worse")
    parser.add_argument("--operator", metavar="NAME", help="for --suite critical: who runs it, as ACCESS.md allows")
    _add_protection(parser)
    parser.add_argument(
        "--url", metavar="URL", help="ask a server in the shape of OpenAI's API, such as http://host:8000/v1"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="the key for --url, in its first line")
    parser.add_argument(
        "--responses", type=Path, metavar="FILE", help="score recorded answers: lines of id and response"
    )
    parser.add_argument("--reference", metavar="MODEL", help="what tasks that compare with another model compare with")
    _add_machine(parser)


def _add_doctor(commands: Any) -> None:
    _command(commands, "doctor", _doctor, "say what this machine can run, and what is missing for more")


def _add_card(commands: Any) -> None:
    parser = _command(commands, "card", _card, "print the model card, made from records and the configuration")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder of a run or a model, hub id, or a preset such as scout"
    )
    parser.add_argument(
        "--records", action="append", default=[], type=Path, metavar="DIR", help="where further records lie"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write it there: .md or .html (default: print it)")


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", _bench, "measure speed and memory beside what this machine allows at best")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="directory or hub id (default: cria)")
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="CASE",
        help="such as prefill_512, decode_b16_ctx128, or a beginning: prefill, decode_b1; none of them: loading alone",
    )
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="of each case, after one more (default 7)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="of the sampler (default 0)")
    _add_machine(parser)


def _add_plan(commands: Any) -> None:
    parser = _command(commands, "plan", _plan, "say what a model takes of given machines: bytes, layout, speed, energy")
    parser.add_argument(
        "model", metavar="MODEL", help="scout, maverick, guard4, cria, or the directory of a checkpoint"
    )
    parser.add_argument(
        "--hardware", required=True, metavar="KIND[:COUNT]", help="such as h100:8; here measures this machine"
    )
    parser.add_argument("--task", choices=("serve", "train", "tune"), default="serve", help="(default: serve)")
    parser.add_argument("--context", type=int, default=8192, metavar="N", help="tokens of a sequence (default 8192)")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="sequences at once (default 1); of a training's step (default 512)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also draw the plan as a page, FILE.html")
    serving = parser.add_argument_group("serving")
    serving.add_argument(
        "--quantize",
        default="none",
        choices=("none", "int4", "int8", "fp8", "int4-experts", "fp8-experts"),
        help="of weights; -experts: Meta's two recipes (default: none)",
    )
    serving.add_argument(
        "--kv-dtype",
        default="bfloat16",
        choices=("bfloat16", "fp8", "int8", "float16", "float32"),
        help="(default: bfloat16)",
    )
    training = parser.add_argument_group("training and tuning")
    training.add_argument(
        "--method", choices=("full", "lora", "qlora"), default="qlora", help="of tuning (default: qlora)"
    )
    training.add_argument("--rank", type=int, default=16, metavar="N", help="of factors (default 16)")
    training.add_argument("--tokens", type=float, default=1e12, metavar="N", help="of the run (default 1e12)")
    training.add_argument(
        "--numbers", choices=("bfloat16", "fp8"), default="bfloat16", help="of products (default: bfloat16)"
    )
    training.add_argument(
        "--optimizer", choices=("muon", "adamw"), default="muon", help="of matrices, as in recipes (default: muon)"
    )
    training.add_argument(
        "--fused", action="store_true", help="take attention that keeps no scores; puna's own trainer keeps them"
    )
    training.add_argument(
        "--pue", type=float, default=1.0, metavar="X", help="energy of the site over that of its GPUs"
    )
    training.add_argument(
        "--kg-per-kwh", type=float, default=0.387, metavar="X", help="of the grid (default 0.387, as in the card)"
    )


def _add_protection(parser: argparse.ArgumentParser) -> None:
    """Adds which protections stand around the model."""
    parser.add_argument(
        "--guard",
        default="chatbot",
        metavar="POLICY",
        help="chatbot, visual_qa, coding_assistant, agent, off, or a file (default: chatbot)",
    )
    parser.add_argument(
        "--guard-model", metavar="MODEL", help="Llama Guard to judge contents (default: phrases, which see little)"
    )


def _add_making(parser: argparse.ArgumentParser) -> None:
    """Adds what says on which machine and how an answer is made."""
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture; may be given several times"
    )
    _add_adapters(parser, "answer with this low-rank adapter over the model")
    _add_machine(parser)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end the answer before this text; may be repeated"
    )
    parser.add_argument("--json-schema", metavar="FILE", type=Path, help="answer in JSON that fits this schema")
    parser.add_argument("--regex", metavar="TEXT", help="answer in a text that this expression matches as a whole")
    for name, (kind, text) in _SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X" if kind is float else "N", help=text)


def _add_adapters(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds which adapters lie over the model."""
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=DIR", help=text)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """Adds where a model runs and in which numbers."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", metavar="NAME", help="float32, bfloat16 or float16 (default: as stored)")
    parser.add_argument(
        "--speculate", metavar="HOW", help="lookup, or a smaller model: guess tokens, check several at once"
    )
    parser.add_argument(
        "--quantize", choices=("int4", "int8", "fp8"), help="make weights smaller while loading (default: as stored)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="keep the model there as it runs, for a faster next start"
    )
    parser.add_argument(
        "--offload", choices=("disk", "host"), help="leave routed experts there and fetch the chosen ones: slow"
    )
    parser.add_argument("--offload-dir", type=Path, metavar="DIR", help="where --offload disk copies them, once")
    parser.add_argument(
        "--expert-cache-gb", type=float, metavar="X", help="for fetched experts (default: half of the free memory)"
    )
    parser.add_argument(
        "--spill-gb", type=float, metavar="X", help="keep that much of what leaves the cache of keys and values"
    )
    parser.add_argument("--spill-dir", type=Path, metavar="DIR", help="where to keep it (default: in memory)")
    for name, what, default in (
        ("tensor", "ranks that cut each layer, and each expert", "all that are left"),
        ("expert", "groups of ranks that share out the experts", "1"),
        ("pipeline", "groups of ranks that share out the layers", "1"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"under torchrun: {what} (default: {default})")


# Commands ---------------------------------------------------------------------------------------------------------


def _chat(arguments: argparse.Namespace) -> None:
    from puna.prompt.message import ImagePart, Message, TextPart

    interactive = arguments.message is None and sys.stdin.isatty()
    if interactive and arguments.json:
        raise PromptError("--json answers one message: give it with --message TEXT, or on standard input")
    images = _images(arguments.image)
    options, text = _options(arguments), None if interactive else _message_text(arguments.message)
    assistant = _guarded(_assistant(arguments.model, arguments), arguments)
    if text is None:
        _converse(assistant, arguments, images, options)
        return
    _reply(assistant, [Message("user", (*map(ImagePart, images), TextPart(text)))], arguments, options)


def _reply(
    assistant: "Guarded", messages: "Sequence[Message]", arguments: argparse.Namespace, options: "Options"
) -> None:
    if arguments.json:
        response = assistant.respond(messages, **options)
        _print_response(
            response,
            arguments,
            lambda answer: {"message": answer.message.to_dict()} | assistant.told(answer),
            assistant.drafts,
        )
    else:
        _print_stream(assistant.stream_chat(messages, **options))


def _converse(assistant: "Guarded", arguments: argparse.Namespace, images: Sequence[Any], options: "Options") -> None:
    from puna.terminal import Conversation, Screen, converse

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` line editing and history

    screen = Screen.on(sys.stdout)
    screen.note(f"{_model_name(arguments.model)}: type a message, drop a picture, or /help")
    screen.note(assistant.pipeline.summary)
    converse(Conversation(assistant, screen, images=images, options=options), screen)


def _complete(arguments: argparse.Namespace) -> None:
    from puna.guard.guarded import Guarded

    text = _standard_input() if arguments.text == "-" else arguments.text
    images, options = _images(arguments.image), _options(arguments)
    model = _assistant(arguments.model, arguments)
    assistant = Guarded(model, _pipeline(model, arguments))
    if arguments.json:
        response = assistant.extend(text, images, **options)
        _print_response(
            response, arguments, lambda answer: {"text": answer.text} | assistant.told(answer), assistant.drafts
        )
    else:
        _print_stream(assistant.stream_complete(text, images, **options))


def _serve(arguments: argparse.Namespace) -> None:
    from puna.serve.waiting import wait_briefly

    wait_briefly()
    try:
        from puna.serve import apart, app, guarding, metrics
    except ImportError as error:
        raise DeviceError(f"puna serve needs {error.name}, which is missing: pip install 'puna[serve]'") from error
    for name in ("max_open", "drain_seconds", "request_seconds"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: give 1 or more")
    if not 0 <= arguments.events_per_second < float("inf"):
        raise ConfigError(f"--events-per-second is {arguments.events_per_second}: give 0 or more")
    keys = _api_keys(arguments.api_key_file)
    model = _name_in_requests(arguments)
    if arguments.host not in app.LOCAL_HOSTS and not keys:
        print(f"warning: others may reach {arguments.host}, and no key is asked of them", file=sys.stderr)
    app.log_to_stderr()
    assistant = _assistant(arguments.model, arguments)
    guards = guarding.Guarding(
        policy=_policy(arguments), system=_system(assistant, arguments), reports=arguments.reports
    )
    settings = app.Settings(
        model=model,
        adapters=assistant.adapters,
        keys=keys,
        max_open=arguments.max_open,
        events_per_second=arguments.events_per_second,
        metrics_prefix=metrics.VLLM_PREFIX if arguments.vllm_metrics else metrics.PREFIX,
        request_seconds=arguments.request_seconds,
        image_hosts=tuple(arguments.image_host),
        origins=tuple(arguments.origin),
        page=not arguments.no_page,
    )

    def say(url: str) -> None:
        page = "" if arguments.no_page else f", and shows a page at {url.removesuffix('v1')}"
        _print({"model": model, "url": url}, arguments, f"{model} answers at {url}{page}")
        sys.stdout.flush()

    run = app.run if guards.needs_model else apart.run
    where = {"host": arguments.host, "port": arguments.port, "drain_seconds": arguments.drain_seconds}
    run(assistant, settings, guards, say=say, **where)


def _batch(arguments: argparse.Namespace) -> None:
    try:
        from puna.serve import batch, guarding
    except ImportError as error:
        raise DeviceError(f"puna batch needs {error.name}, which is missing: pip install 'puna[serve]'") from error
    import asyncio
    from dataclasses import asdict

    for name in ("at_once", "workers"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: give 1 or more")
    if arguments.workers is not None and arguments.ray is None:
        raise ConfigError(f"--workers is {arguments.workers} and --ray is not given: leave it out, or give both")
    source, target = arguments.source, arguments.target
    source.open("rb").close()  # a wrong name is wrong now, not when the model is loaded
    model = _name_in_requests(arguments)
    if arguments.ray is None:
        assistant = _assistant(arguments.model, arguments)
        protections = guarding.Protections(_pipeline(assistant, arguments))
        run = batch.run_here(
            source,
            target,
            assistant,
            model=model,
            at_once=arguments.at_once,
            say=_say_progress,
            screen=protections,
        )
    else:
        run = _run_on_cluster(arguments, model)
    summary = asyncio.run(run)
    document = {"model": model, "out": str(target)} | asdict(summary)
    text = f"{target}: {summary.lines} lines, {summary.kept} of them from before, {summary.failed} failed"
    _print(document, arguments, text)


def _run_on_cluster(arguments: argparse.Namespace, model: str) -> "Coroutine[Any, Any, Summary]":
    try:
        from puna.serve import ray_batch
    except ImportError as error:
        raise DeviceError(f"--ray needs {error.name}, which is missing: pip install 'puna[ray]'") from error

    options = _loading(arguments)
    options["adapters"] = {name: Path(folder).absolute() for name, folder in options["adapters"].items()}
    if options["layout"] is not None:
        raise ConfigError("--ray gives each worker a model of its own: leave --tensor, --expert and --pipeline out")
    named = _model_name(arguments.model)
    plan = ray_batch.Plan(
        source=Path(named).resolve() if Path(named).exists() else named,
        options=options,
        model=model,
        at_once=arguments.at_once,
        policy=_policy(arguments),
    )
    return ray_batch.run_on_cluster(
        arguments.source,
        arguments.target,
        plan,
        address=arguments.ray,
        n_workers=arguments.workers,
        say=_say_progress,
    )


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """Returns the keys in `file`, one a line; lines that begin with # are comments. Without it, the environment's."""
    if file is None:
        return tuple(filter(None, [os.environ.get("PUNA_API_KEY", "").strip()]))
    lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-key-file {file}: holds no key; write one a line, or leave the option out")
    return keys


def _convert(arguments: argparse.Namespace) -> None:
    from puna.weights import checkpoint, hub

    source, destination = hub.resolve(arguments.source), arguments.destination
    change = None if arguments.adapter is None else _merging(arguments.adapter, source)
    checkpoint.convert(source, destination, arguments.to, arguments.shards, _progress("converting"), change)
    n_bytes = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    document = {"source": str(source), "destination": str(destination), "layout": arguments.to, "bytes": n_bytes}
    _print(document, arguments, f"{destination}: {n_bytes / 1e9:.3f} GB in the layout of {arguments.to}")


def _merging(adapter: Path, source: Path) -> "Callable[[str, Tensor], Tensor]":
    """Returns what merges an adapter into the parameters of a checkpoint, one at a time."""
    from puna.adapters.merge import merged
    from puna.weights import checkpoint, peft

    factors = peft.load(adapter, checkpoint.open_config(source))
    return lambda name, weight: merged(name, weight, factors)


def _quantize(arguments: argparse.Namespace) -> None:
    from puna.quant import swap
    from puna.weights import compressed, hub

    source, destination = hub.resolve(arguments.source), arguments.destination
    text = None if arguments.report is None else _text_of(arguments.report)
    parts = swap.DECODER - {"head"} if arguments.parts is None else frozenset(arguments.parts)
    policy = swap.Policy(to=arguments.to, parts=parts)
    losses: list[swap.Loss] = []
    shrink = swap.shrink_and_tell(policy, losses.append)
    kind = swap.KINDS[policy.to]
    compressed.save_compressed(source, destination, kind, shrink, policy.covers, _progress("quantizing"))
    drifted = None if text is None else _drift(source, destination, text)
    n_bytes = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    document = {
        "source": str(source),
        "destination": str(destination),
        "to": policy.to,
        "parts": sorted(parts),
        "bytes": n_bytes,
        "losses": [loss._asdict() for loss in losses],
        "drift": None if drifted is None else drifted._asdict(),
    }
    rows = [f"{loss.relative_error:8.2%}  {loss.name}" for loss in losses]
    rows = ["   error  parameter", *rows, f"{destination}: {n_bytes / 1e9:.3f} GB, {policy.to}"]
    if drifted is not None:
        rows.append(
            f"drift over {drifted.n_tokens} tokens: {drifted.divergence:.5f} nats (standard error "
            f"{drifted.divergence_error:.5f}), same first choice {drifted.agreement:.2%}, perplexity "
            f"{drifted.perplexity_full:.4f} -> {drifted.perplexity_small:.4f}"
        )
    _print(document, arguments, "\n".join(rows))


def _text_of(file: Path) -> str:
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{file}: is not UTF-8 ({error.reason}); convert it first") from error
    if not text.strip():
        raise PromptError(f"{file}: holds no text; give one of some pages")
    return text


def _drift(source: Path, destination: Path, text: str) -> "Drift":
    """Returns how far the checkpoint `destination` drifts from `source` on a text; one of them is in memory at a time.

    At most 8192 tokens are read, in pieces of 512, and no more than 1 GB of logits.
    """
    from puna.chat import load
    from puna.quant.drift import drift, windows

    full = load(source)
    vocab_size, bos_id = full.config.text.vocab_size, full.config.bos_id
    n_tokens = max(2, min(8192, 10**9 // (4 * vocab_size)))
    texts = windows(full.tokenizer.encode(text)[:n_tokens], 512, bos_id)
    known = [full.logits(ids) for ids in texts]
    del full
    small = load(destination)
    remembered = iter(known)
    return drift(lambda _: next(remembered), small.logits, texts)


def _params(arguments: argparse.Namespace) -> None:
    from puna.model.count import count_parameters

    count = count_parameters(_config(arguments.model))
    document = {"model": arguments.model, "total": count.total, "activated": count.activated, "parts": count.parts()}
    rows = [("total", count.total), ("activated", count.activated), *count.parts().items()]
    _print(document, arguments, "\n".join(f"{name.replace('_', ' '):15} {n:>19,}  {_short(n):>9}" for name, n in rows))


def _prepare(arguments: argparse.Namespace) -> None:
    from puna.train.prepare import run

    settings = run.Settings(
        inputs=tuple(arguments.inputs),
        out=arguments.out,
        against=tuple(arguments.against),
        lists=arguments.safety,
        languages=tuple(filter(None, (arguments.languages or "").split(","))),
        min_words=arguments.min_words,
        memory_mb=arguments.memory_mb,
        n_workers=arguments.workers,
    )
    report = run.prepare(settings, _say_progress)
    counts = {name: (each["documents"], each["bytes"] / 1e6) for name, each in report["all"].items()}
    lines = [f"{name:24}{n:>12,}{megabytes:>12.2f} MB" for name, (n, megabytes) in counts.items()]
    _print(report, arguments, "\n".join([*lines, f"child safety: {report['child_safety']}"]))


def _haystack(arguments: argparse.Namespace) -> None:
    from puna.prompt.tokenizer import Tokenizer
    from puna.train import haystack

    wish = haystack.Wish(
        lengths=tuple(arguments.length),
        n=arguments.documents,
        told=arguments.told,
        asked=arguments.asked,
        seed=arguments.seed,
        only_asked=arguments.only_asked,
    )
    counts = haystack.write(arguments.inputs, Tokenizer.load(arguments.tokenizer), wish, arguments.out)
    lines = [
        f"{name:8}{n['documents']:>8,} documents{n['characters']:>14,} characters"
        for name, n in counts["sources"].items()
    ]
    _print(counts, arguments, "\n".join([*lines, f"texts read {counts['times_read']} times"]))


def _train(arguments: argparse.Namespace) -> None:
    if str(arguments.recipe) == "watch":
        _watch_run(arguments)
    elif arguments.watched is not None:
        raise ConfigError(f"{arguments.watched}: one recipe at a time; puna train watch RUN shows a run")
    elif arguments.dry_run:
        _plan_run(arguments)
    elif arguments.coordinate_check:
        _check_coordinates(arguments)
    else:
        _train_run(arguments)


def _watch_run(arguments: argparse.Namespace) -> None:
    from puna.train.watch import server

    if arguments.watched is None:
        raise ConfigError("puna train watch: name the folder of a run, such as runs/cria")

    def say(url: str) -> None:
        _print({"run": str(arguments.watched), "url": url}, arguments, f"{arguments.watched} can be seen at {url}")
        sys.stdout.flush()

    server.watch(arguments.watched, arguments.port, say)


def _plan_run(arguments: argparse.Namespace) -> None:
    from puna.train import loop, plan, recipe

    read = recipe.read(arguments.recipe, arguments.set)
    found, memory = plan.plan(read, loop.model_config(read)), round(arguments.gpu_memory * 1e9)
    _print(found.to_json(memory), arguments, plan.table(found, memory))


def _check_coordinates(arguments: argparse.Namespace) -> None:
    _settle_threads()
    from puna.train import coordinates, loop, recipe

    read = recipe.read(arguments.recipe, arguments.set)
    exponent = 1.0 if read.transfer is None else read.transfer.depth_exponent
    found = coordinates.report(loop.model_config(read), read.optimizer, exponent)
    _print(coordinates.to_json(found), arguments, coordinates.text(found))


def _train_run(arguments: argparse.Namespace) -> None:
    _settle_threads()
    from puna.train import loop, recipe

    read = recipe.read(arguments.recipe, arguments.set)
    folder = arguments.folder or Path("runs", arguments.recipe.stem)
    _print_outcome(arguments, folder, loop.train(read, folder, _say_progress))


def _tune(arguments: argparse.Namespace) -> None:
    _settle_threads()
    from puna.eval import coding
    from puna.train import tune, tune_recipe

    read = tune_recipe.read(arguments.recipe, arguments.set)
    folder = arguments.folder or Path("runs", arguments.recipe.stem)
    _print_outcome(arguments, folder, tune.tune(read, folder, _say_progress, {"code": coding.worth}))


def _synthesize(arguments: argparse.Namespace) -> None:
    from puna.eval import coding, opinion
    from puna.train.synthesize import Order, synthesize

    if arguments.judge_prompt is not None and not arguments.judge:
        raise ConfigError("--judge-prompt is given and --judge is not: name the model that is told this")
    prompt = opinion.PROMPT if arguments.judge_prompt is None else arguments.judge_prompt.read_text("utf-8")
    order = Order(
        model=arguments.model,
        tasks=tuple(arguments.tasks),
        out=arguments.out,
        quantize=arguments.quantize or "",
        n=arguments.n,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        least_reward=arguments.least_reward,
        best=arguments.best,
        against=tuple(arguments.against),
        judge=arguments.judge,
        judge_prompt=prompt,
        least_score=arguments.least_score,
    )
    made = synthesize(order, _say_progress, {"code": coding.worth}, partial(_opinion, order, arguments.quantize))
    _print(made._asdict(), arguments, f"{arguments.out}: {made.kept} of {made.replies} replies to {made.tasks} tasks")


def _opinion(order: "Order", quantize: Any, writer: "Llama") -> "ModelOpinion":
    """Returns the model that judges replies: one of its own, or the one that writes them."""
    from puna.chat import Assistant, load
    from puna.eval.opinion import ModelOpinion
    from puna.prompt.tokenizer import Tokenizer
    from puna.weights import hub

    if order.judge == order.model:
        judge = Assistant(writer, Tokenizer.load(hub.resolve(order.judge)))
    else:
        judge = load(order.judge, quantize=quantize)
    return ModelOpinion(judge, order.judge_prompt)


def _settle_threads() -> None:
    """Call it before torch is imported, which reads these. Threads that spin while they wait lose far more than half
    beside other work; and their number, and so the order of sums, must not follow the load."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_DYNAMIC"] = "FALSE"


def _print_outcome(arguments: argparse.Namespace, folder: Path, outcome: "Outcome") -> None:
    document = {"run": str(folder), "step": outcome.step, "finished": outcome.finished}
    state = "finished" if outcome.finished else "paused; the same command goes on"
    _print(document, arguments, f"{folder}: step {outcome.step}, {state}")


def _eval(arguments: argparse.Namespace) -> None:
    for name in ("limit", "batch", "max_new_tokens"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: give 1 or more")
    if arguments.compare:
        from puna.eval import compare

        found = compare.compare(*arguments.compare)
        _print({each.task: each.to_json() for each in found}, arguments, compare.table(found))
    elif arguments.task == "held_out":
        _eval_held_out(arguments)
    elif arguments.suite in ("safety", "redteam", "critical"):
        _eval_safety(arguments)
    elif arguments.responses:
        _eval_responses(arguments)
    else:
        _eval_model(arguments)


def _eval_model(arguments: argparse.Namespace) -> None:
    """Runs tasks on a model of this process, or on a server's, and prints the tables."""
    from puna.eval import record, report, suite

    wanted, settings = _suite(arguments)
    model, model_hash = _eval_server(arguments) if arguments.url else _eval_local(arguments)
    folder_path = arguments.out or suite.default_folder(model)
    folder = record.Folder(folder_path, {"name": model.name, **model.identity})
    circumstances = suite.circumstances(model, model_hash, settings)
    try:
        outcomes = suite.run_suite(wanted, model, arguments.data, folder, circumstances, _say)
    finally:
        folder.close()
    _say(f"records, tables and items are in {folder_path}")
    text = report.markdown([each.evaluation for each in outcomes])
    _print({each.evaluation.task: each.to_json() for each in outcomes}, arguments, text)


def _eval_safety(arguments: argparse.Namespace) -> None:
    """Runs a suite about safety on a model behind the protections of --guard, and prints its tables."""
    from puna.eval import safety_suite
    from puna.guard import pipeline

    protections = pipeline.make(_policy(arguments))
    model, _ = _eval_server(arguments) if arguments.url else _eval_local(arguments)
    findings = safety_suite.run(
        arguments.suite,
        model,
        protections,
        arguments.data,
        limit=arguments.limit,
        max_new_tokens=arguments.max_new_tokens,
        baseline=arguments.baseline,
        operator=arguments.operator,
        progress=_say,
    )
    if arguments.out is not None:
        safety_suite.write(findings, arguments.suite, arguments.out)
    _print(findings.document, arguments, findings.table)
    if findings.worse:
        raise ConfigError(f"worse than {arguments.baseline}: {'; '.join(findings.worse)}")


def _eval_responses(arguments: argparse.Namespace) -> None:
    from puna.eval import report, suite

    wanted, settings = _suite(arguments)
    circumstances = suite.recorded(arguments.model or arguments.responses.stem, settings)
    outcomes = suite.score_file(wanted.tasks, arguments.responses, arguments.data, settings, circumstances)
    text = report.markdown([each.evaluation for each in outcomes])
    _print({each.evaluation.task: each.to_json() for each in outcomes}, arguments, text)


def _suite(arguments: argparse.Namespace) -> "tuple[Suite, Settings]":
    from puna.eval import suite
    from puna.eval.run import Settings

    settings = Settings(limit=arguments.limit, seed=arguments.seed, max_new_tokens=arguments.max_new_tokens)
    if arguments.suite:
        wanted = suite.read_suite(arguments.suite, settings)
    else:
        wanted = suite.Suite(tasks=suite.tasks_named(arguments.task), settings=settings, is_named=True)
    return wanted, wanted.settings


def _eval_local(arguments: argparse.Namespace) -> "tuple[EvalModel, str]":
    from puna.chat import load
    from puna.eval.local import LocalModel
    from puna.eval.result import files_hash
    from puna.weights import hub

    name = _model_name(arguments.model)
    model_hash = files_hash(hub.resolve(name))
    assistant = _assistant(arguments.model, arguments)
    identity = {"files": model_hash, "numbers": _numbers(arguments)}
    reference = None if arguments.reference is None else load(arguments.reference, device=arguments.device)
    if reference is not None:
        identity["reference"] = files_hash(hub.resolve(arguments.reference))
    model = LocalModel(assistant, name=Path(name).name, identity=identity, batch=arguments.batch, reference=reference)
    return model, model_hash


def _numbers(arguments: argparse.Namespace) -> str:
    """Says in which numbers a model runs, as far as this was asked for."""
    return ", ".join(filter(None, (arguments.dtype or os.environ.get("PUNA_DTYPE"), arguments.quantize))) or "as stored"


def _eval_server(arguments: argparse.Namespace) -> "tuple[EvalModel, str]":
    from puna.eval.remote import RemoteModel

    if arguments.reference:
        raise ConfigError("--reference compares logits, which no server gives: load both models, without --url")
    keys = _api_keys(arguments.api_key_file)
    key = keys[0] if keys else None
    return RemoteModel(arguments.url, model=arguments.model, key=key, batch=arguments.batch), ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _eval_held_out(arguments: argparse.Namespace) -> None:
    from puna.eval import held_out

    if len(arguments.data) != 1:
        raise ConfigError("--data: held_out needs one folder, such as corpus/cria")
    assistant = _assistant(arguments.model, arguments)
    record = held_out.measure(assistant, arguments.data[0] / "held_out.jsonl", limit=arguments.limit, progress=_say)
    rows = ["set              language      n   exact  without picture"]
    for name, languages in record.exactness.items():
        rows += [
            f"{name:16} {language:8} {e.n:6} {e.share:7.1%} {e.right_without_picture / e.n:16.1%}"
            for language, e in sorted(languages.items())
        ]
    for name, texts in record.compression.items():
        for language, c in sorted(texts.items()):
            blind = c.bits_without_picture / c.n_bytes
            rows.append(f"{name:16} {language:8} {c.n:6} {c.bits_per_byte:7.3f} {blind:16.3f}  bits per byte")
    _print({"model": _model_name(arguments.model)} | record.to_json(), arguments, "\n".join(rows))


def _prune_guard(arguments: argparse.Namespace) -> None:
    from puna.guard.prune import prune
    from puna.weights import hub

    source = hub.resolve(arguments.source)
    config = prune(source, arguments.destination, _progress("pruning"))
    n_layers = config.text.n_layers
    document = {"source": str(source), "destination": str(arguments.destination), "layers": n_layers}
    _print(document, arguments, f"{arguments.destination}: {n_layers} dense layers; tune it before it judges")


def _guard(arguments: argparse.Namespace) -> None:
    """Prints a line for each input: with --json the verdict as an object, without it action, score and codes."""
    from puna.guard.lines import check_lines

    try:
        with arguments.file.open(encoding="utf-8") as lines:
            for verdict in check_lines(arguments.kind, lines, _guard_on_weights(arguments.kind, arguments.model)):
                text = f"{verdict['action']:6} {verdict['score']:.3f} {' '.join(verdict['codes'])}".rstrip()
                _print(verdict, arguments, text)
    except UnicodeDecodeError as error:
        raise PromptError(f"{arguments.file}: is not UTF-8 ({error.reason}); convert it first") from error


def _guard_on_weights(kind: str, model: str | None) -> "Guard | None":
    """Returns the guard of a checkpoint, None where none was named."""
    if model is None:
        return None
    from puna.guard.content import content_guard
    from puna.guard.prompt_guard import prompt_guard
    from puna.weights import hub

    if kind not in ("content", "injection"):
        raise ConfigError(f"--model is {model!r}: there is no model for {kind}, it works by rules; leave it out")
    return content_guard(hub.resolve(model)) if kind == "content" else prompt_guard(hub.resolve(model))


def _doctor(arguments: argparse.Namespace) -> None:
    from puna.doctor import examine

    found = examine()
    _print(found.to_json(), arguments, found.text())


def _card(arguments: argparse.Namespace) -> None:
    from puna.card import card, places, records
    from puna.presets import PRESETS

    name = _model_name(arguments.model)
    if name not in PRESETS and not Path(name).is_dir():
        from puna.weights import hub

        name = str(hub.resolve(name))
    place = places.find(name, arguments.records)
    config = _config(place.config)
    made = card.make(records.gather(place.name, config, place.folders, place.float_bytes))
    out = arguments.out
    if out is not None and out.suffix not in (".md", ".html"):
        raise ConfigError(f"--out is {str(out)!r}: end it in .md or .html")
    text = made.markdown() if out is None or out.suffix == ".md" else made.page()
    if out is not None:
        out.write_text(text, "utf-8")
        text = f"{out}: the card of {made.name}; {len(made.missing)} things are not on record"
    _print(made.to_json(), arguments, text.rstrip("\n"))


def _bench(arguments: argparse.Namespace) -> None:
    from puna.bench.measure import measure

    if arguments.runs < 1:
        raise ConfigError(f"--runs is {arguments.runs}: give 1 or more")
    record = measure(
        _model_name(arguments.model),
        lambda: _assistant(arguments.model, arguments),
        quantize=arguments.quantize,
        only=arguments.only,
        runs=arguments.runs,
        temperature=arguments.temperature,
        progress=_say_progress,
    )
    _print(record.to_json(), arguments, record.table())


def _plan(arguments: argparse.Namespace) -> None:
    from puna.plan import page

    for name in ("context", "batch", "rank", "tokens"):
        if getattr(arguments, name) is not None and not getattr(arguments, name) >= 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: give 1 or more")
    out = arguments.out
    if out is not None and out.suffix != ".html":
        raise ConfigError(f"--out is {str(out)!r}: end it in .html")
    made = _made_plan(arguments)
    if out is not None:
        out.write_text(page.page(made), "utf-8")
    _print(made.to_json(), arguments, made.table())


def _made_plan(arguments: argparse.Namespace) -> "ServePlan | TrainPlan | TunePlan":
    from puna.meter import Site
    from puna.plan import plan
    from puna.plan.activations import Shape, has_kernels
    from puna.plan.cluster import parse
    from puna.plan.serve import Asked
    from puna.plan.step import Assumed
    from puna.plan.stored import scheme
    from puna.plan.train import Length

    name, config = arguments.model, _config(arguments.model)
    here = None
    if arguments.hardware.lower().partition(":")[0] == "here":
        from puna.bench.here import hardware_here

        here = hardware_here()
    cluster = parse(arguments.hardware, here)
    if arguments.task == "serve":
        float_bytes, formats = _stored(name)
        asked = Asked(
            context=arguments.context,
            batch=arguments.batch or 1,
            scheme=arguments.quantize,
            float_bytes=float_bytes,
            kv_dtype=arguments.kv_dtype,
            stored=scheme(config, formats),
        )
        return plan.serve(name, config, cluster, asked)
    if arguments.task == "tune" and arguments.method != "full":
        return plan.tune(name, config, cluster, arguments.method, arguments.rank, arguments.context)
    return plan.train(
        arguments.task,
        name,
        config,
        cluster,
        Shape(
            rows=1,
            row_len=arguments.context,
            scores=not arguments.fused,
            kernels=cluster.hardware.has_kernels and has_kernels(config.text),
        ),
        arguments.batch or max(512, cluster.count),
        Assumed(numbers=arguments.numbers),
        Length(tokens=arguments.tokens, site=Site(pue=arguments.pue, location_kg_per_kwh=arguments.kg_per_kwh)),
        arguments.optimizer,
    )


def _config(model: str) -> "LlamaConfig":
    """Returns a preset, or the configuration of a checkpoint's directory."""
    from puna.presets import PRESETS

    if model in PRESETS:
        return PRESETS[model]
    if not Path(model).is_dir():
        raise ConfigError(f"MODEL is {model!r}: neither a directory nor one of {', '.join(PRESETS)}")
    from puna.weights.checkpoint import open_config

    return open_config(Path(model))


def _stored(model: str) -> tuple[int, dict[str, str]]:
    """Returns how the files in a directory hold weights: bytes of a float, and formats of the parameters that are in
    small numbers. Of a preset, or where there are no weights, floats are bfloat16."""
    folder = Path(model)
    if not any(found for pattern in ("*.safetensors", "consolidated*.pth") for found in folder.glob(pattern)):
        return 2, {}
    from puna.weights.source import open_source

    source = open_source(folder)
    return source.dtype.itemsize, source.formats


# What commands share ----------------------------------------------------------------------------------------------


def _model_name(named: str | None) -> str:
    return named or os.environ.get("PUNA_MODEL") or "cria"


def _assistant(named: str | None, arguments: argparse.Namespace) -> "Assistant":
    from puna.chat import load

    return load(_model_name(named), progress=_progress("loading"), **_loading(arguments))


def _loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what `chat.load` is told by arguments and environment."""
    return {
        "dtype": arguments.dtype or os.environ.get("PUNA_DTYPE") or None,
        "device": arguments.device or os.environ.get("PUNA_DEVICE") or None,
        "quantize": arguments.quantize,
        "cache_dir": arguments.cache_dir,
        "speculate": arguments.speculate,
        "offload": arguments.offload,
        "offload_dir": arguments.offload_dir,
        "expert_cache_bytes": _bytes("expert-cache-gb", arguments.expert_cache_gb),
        "spill_bytes": _bytes("spill-gb", arguments.spill_gb),
        "spill_dir": arguments.spill_dir,
        "layout": _layout(arguments),
        "adapters": _adapters(vars(arguments).get("adapter") or []),
    }


def _name_in_requests(arguments: argparse.Namespace) -> str:
    """Returns what requests call the model, which may not be what they call one of its adapters."""
    model: str = arguments.name or Path(_model_name(arguments.model)).name
    if model in _adapters(arguments.adapter):
        raise ConfigError(f"--adapter is named {model!r}, as the model is: give one of the two another name")
    return model


def _adapters(given: Sequence[str]) -> dict[str, str]:
    """Returns directories by name, of arguments NAME=DIR."""
    adapters = {}
    for each in given:
        name, _, directory = each.partition("=")
        if not name or not directory:
            raise ConfigError(f"--adapter is {each!r}: give NAME=DIR, a name for requests and a directory")
        if name in adapters:
            raise ConfigError(f"--adapter names {name!r} twice: give each a name of its own")
        adapters[name] = directory
    return adapters


def _guarded(assistant: "Assistant", arguments: argparse.Namespace) -> "Guarded":
    """Returns a model behind its protections, with the system message that begins each conversation."""
    from puna.guard.guarded import Guarded

    return Guarded(assistant, _pipeline(assistant, arguments), system=_system(assistant, arguments))


def _pipeline(assistant: "Assistant", arguments: argparse.Namespace) -> "Pipeline":
    from puna.guard import pipeline

    return pipeline.make(_policy(arguments), assistant)


def _policy(arguments: argparse.Namespace) -> "Policy":
    from dataclasses import replace

    from puna.guard import policy

    chosen = policy.load(arguments.guard)
    return chosen if arguments.guard_model is None else replace(chosen, content=arguments.guard_model)


def _system(assistant: "Assistant", arguments: argparse.Namespace) -> str | None:
    """Returns the system message that was given, or else the one that helps this model, if any does."""
    from puna.guard import persona
    from puna.weights import hub

    if arguments.system is not None:
        return arguments.system or None
    return persona.for_checkpoint(hub.resolve(_model_name(arguments.model)), assistant.config)


def _bytes(name: str, gigabytes: float | None) -> int | None:
    if gigabytes is None:
        return None
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"--{name} is {gigabytes}: give a number above 0, or leave the option out")
    return int(gigabytes * 1e9)


def _layout(arguments: argparse.Namespace) -> "Layout | None":
    """Returns how the ranks that torchrun started divide the model; None where there is one and nothing was asked."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    asked = {name: getattr(arguments, name) for name in ("tensor", "expert", "pipeline")}
    if world == 1 and all(n is None for n in asked.values()):
        return None
    from puna.parallel import Layout

    return Layout.of(world, **asked)


def _is_follower() -> bool:
    return int(os.environ.get("RANK", "0")) > 0


def _follow(arguments: argparse.Namespace) -> None:
    """What all ranks but the first do, whatever the command is: loading ends when rank 0 lets them go.

    A signal to stop reaches all ranks; rank 0 decides what is still to be done. Without it there is nothing to follow.
    """
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    try:
        _assistant(arguments.model, arguments)
    except ConfigError:
        sys.exit(2)  # rank 0 finds the same, and says it


def _options(arguments: argparse.Namespace) -> "Options":
    """Returns the options that were given; the others keep their defaults."""
    names = (*_SAMPLING, "stop", "regex")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.json_schema is not None:
        given["json_schema"] = arguments.json_schema.read_text("utf-8")
    if (adapter := _adapter(arguments)) is not None:
        given["adapter"] = adapter
    return given  # type: ignore[return-value]


def _adapter(arguments: argparse.Namespace) -> str | None:
    """Returns the name of the one adapter that answers, if one was given."""
    names = list(_adapters(arguments.adapter))
    if len(names) > 1:
        raise ConfigError(f"--adapter names {' and '.join(names)}: one adapter answers here; puna serve has several")
    return names[0] if names else None


def _images(paths: Sequence[str]) -> list[Any]:
    from puna.prompt.message import open_image

    return [open_image(Path(path), where=f"--image {path}") for path in paths]


def _message_text(message: str | None) -> str:
    text = _standard_input() if message is None else message
    if not text.strip():
        raise PromptError("--message is empty: give a text, or write one to standard input")
    return text


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is no {error.encoding} text: convert it first") from error


def _progress(what: str) -> Callable[[int, int], None]:
    """Returns a function that shows how far it is on standard error, if somebody looks at it."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty() and not _is_follower():
            line = f"{what} {done / 1e9:.2f} of {total / 1e9:.2f} GB" if done < total else ""
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    return show


def _say_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(document: dict[str, Any], arguments: argparse.Namespace, text: str) -> None:
    print(json.dumps(document, ensure_ascii=False) if arguments.json else text)


def _print_stream(texts: Iterable[str]) -> None:
    """Prints an answer as it is made. A terminal is shown control characters instead of obeying them."""
    from puna.terminal import Screen

    say = Screen(sys.stdout).say if sys.stdout.isatty() else sys.stdout.write
    for text in texts:
        say(text)
        sys.stdout.flush()
    print()


def _print_response(
    response: "Response",
    arguments: argparse.Namespace,
    content: "Callable[[Answer], dict[str, Any]]",
    drafts: tuple[int, int],
) -> None:
    (answer,) = response.answers
    usage, timings = response.usage, response.timings
    n_drafted, n_accepted = drafts
    adapter = _adapter(arguments)
    document = {
        "model": _model_name(arguments.model),
        **({} if adapter is None else {"adapter": adapter}),
        **content(answer),
        "finish": answer.finish,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        "timings": {
            "first_token_seconds": round(timings.first_token_seconds, 4),
            "total_seconds": round(timings.total_seconds, 4),
            "tokens_per_second": round(timings.tokens_per_second(usage), 2),
        },
        **({"guesses": {"made": n_drafted, "right": n_accepted}} if n_drafted else {}),
    }
    print(json.dumps(document, ensure_ascii=False))


def _short(n: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if n >= size:
            return f"{n / size:.2f} {letter}"
    return str(n)
