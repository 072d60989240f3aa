"""The command line: python -m vlnotes check | world | train | claims | weights."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all went well, 1 if something was wrong, 2 for words that it does not know.

    Args:
        arguments: the words after `python -m vlnotes`; those of the process if None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="vlnotes", description="how vision-language representations are made")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="is everything here that the course needs?")
    check.add_argument("--fast", action="store_true", help="do not time a training step")

    world = commands.add_parser("world", help="make the picture world, or export it as files that other code reads")
    world.add_argument(
        "action",
        choices=["make", "export", "blind"],
        help="make: arrays for training; export: PNG and JSON; blind: how far one gets without looking, for the card",
    )
    world.add_argument("--domain", default="paper", help="which domain (default: paper)")
    world.add_argument("--out", type=Path, help="folder (default: the cache for make, world/ for export)")
    world.add_argument("--train", type=int, default=5000, help="pictures to train on")
    world.add_argument("--val", type=int, default=1000, help="pictures to validate on")
    world.add_argument("--test", type=int, default=1000, help="pictures to test on")
    world.add_argument("--size", type=int, default=64, help="pixels a side")
    world.add_argument("--seed", type=int, default=0)

    train = commands.add_parser("train", help="train a method on your own pictures and captions")
    train.add_argument(
        "method",
        choices=["clip", "moco", "albef", "codis", "psd", "nclip", "xclip", "modx"],
        help="moco looks at the pictures alone",
    )
    train.add_argument(
        "--data", type=Path, required=True, help="COCO, Karpathy, Flickr30k or CSV captions, or a folder"
    )
    train.add_argument("--out", type=Path, help="folder for weights and record (default: runs/METHOD-DATA)")
    train.add_argument("--minutes", type=float, default=5.0, help="time budget of the training (default: 5)")
    train.add_argument("--steps", type=int, help="at most that many steps; without it, as many as the time allows")
    train.add_argument("--image", default="conv", choices=["conv", "resnet18", "vit"], help="the image tower")
    train.add_argument("--size", type=int, default=64, help="pixels a side")
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--learning-rate", type=float, default=3e-3)
    train.add_argument("--rerank", type=int, metavar="K", help="ITM looks at the best K again (default: 16)")
    train.add_argument("--gallery", type=int, metavar="N", help="rank at most N test pictures (default: 1000)")
    train.add_argument("--codewords", type=int, metavar="C", help="codis, nclip, xclip: how many (default: 64)")
    train.add_argument("--stream", metavar="FIELD", help="modx: a phase for every value of this field of the entries")
    train.add_argument("--order", nargs="+", metavar="VALUE", help="modx: the phases in this order")
    train.add_argument("--preset", choices=["code", "paper", "code, any batch"], help="modx: settings (default: code)")
    train.add_argument("--weight", type=float, help="modx: of the old matrix (default: the preset's)")
    train.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--skip-bad", action="store_true", help="go on without bad entries, count and list them")
    train.add_argument("--no-resume", action="store_true", help="start again even if an unfinished run is there")

    claims = commands.add_parser("claims", help="the papers' claims, tried over several seeds")
    claims.add_argument("action", choices=["list", "run", "table"])
    claims.add_argument("--minutes", type=float, help="run: stop in time; the next call goes on")
    claims.add_argument("--study", help="one study alone, such as 03.moco")
    claims.add_argument("--scale", default="tiny", help="tiny (default) or small, for a GPU")
    claims.add_argument("--shard", default="0/1", metavar="I/N", help="run: part I of N, to share the work")

    weights = commands.add_parser("weights", help="the small trained weights of the course, and making them again")
    weights.add_argument("action", nargs="?", default="list", choices=["list", "make"])
    weights.add_argument("name", nargs="?", help="which ones (default: all)")
    weights.add_argument("--out", type=Path, help="folder that gets a folder a name (default: data/weights)")

    given = parser.parse_args(arguments)
    try:
        acts = {"check": _check, "world": _world, "train": _train, "claims": _claims, "weights": _weights}
        return acts[given.command](given)
    except KeyboardInterrupt:
        hint = "; the same command goes on from there" if given.command in ("train", "claims", "weights") else ""
        print(f"\nvlnotes {given.command}: stopped{hint}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"vlnotes {given.command}: {error}", file=sys.stderr)
        return 1


def _check(given) -> int:
    from vlnotes.environment import check

    bad = 0
    for line in check(speed=not given.fast):
        print(line, flush=True)
        bad += line.status == "FAIL"
    return int(bad > 0)


def _world(given) -> int:
    from vlnotes import world

    if given.action == "blind":
        from vlnotes import blind

        print(*blind.card_rows(given.domain), sep="\n")
        return 0
    act = world.make if given.action == "make" else world.export
    counts = {"train": given.train, "val": given.val, "test": given.test}
    out = given.out if given.out or given.action == "make" else Path("world")
    print(act(out, given.domain, counts, size=given.size, seed=given.seed))
    return 0


def _train(given) -> int:
    from vlnotes.experiment import train_albef_on, train_codis_on, train_moco_on, train_modx_on, train_on
    from vlnotes.psd import PSD
    from vlnotes.xclip import NCLIP, XCLIP

    out = given.out or Path("runs") / f"{given.method}-{given.data.resolve().stem}"
    looks, codes, phases = "has no ITM that looks again", "has no codebook", "trains on everything at once"
    own = {"rerank": (("albef", "codis"), looks), "gallery": (("albef", "codis"), looks)}
    own |= {"codewords": (("codis", "nclip", "xclip"), codes)}
    own |= {name: (("modx",), phases) for name in ("stream", "order", "preset", "weight")}
    closer = {name: value for name in own if (value := getattr(given, name)) is not None}
    for name in closer:
        methods, why = own[name]
        if given.method not in methods:
            raise ValueError(f"--{name} belongs to {' and '.join(methods)}; {given.method} {why}")
    if given.method == "modx" and given.stream is None:
        raise ValueError("modx trains on a stream: --stream FIELD names the field of the entries that parts them")
    others = {"moco": train_moco_on, "albef": train_albef_on, "codis": train_codis_on, "modx": train_modx_on}
    kinds = {"psd": PSD, "nclip": NCLIP, "xclip": XCLIP}
    if given.method in kinds:
        closer["kind"] = kinds[given.method]
    others.get(given.method, train_on)(
        given.data,
        out,
        minutes=given.minutes,
        steps=given.steps,
        image=given.image,
        size=given.size,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        device=given.device,
        seed=given.seed,
        skip_bad=given.skip_bad,
        resume=not given.no_resume,
        **closer,
    )
    return 0


def _claims(given) -> int:
    from vlnotes import claims

    part, _, parts = given.shard.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ValueError(f"--shard must be I/N with I from 0 to N - 1, such as 0/2; got {given.shard}")
    return claims.main(given.action, given.minutes, given.study, given.scale, (int(part), int(parts)))


def _weights(given) -> int:
    from vlnotes import weights

    return weights.main(given.action, given.name, given.out)


if __name__ == "__main__":
    sys.exit(main())
