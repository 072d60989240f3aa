"""Real layouts are read rightly, and every kind of bad entry is refused by name or skipped and listed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import BatchEncoding

from vlnotes.datasets import (
    PairDataset,
    by_label,
    caption_targets,
    collate,
    cut,
    load_pictures,
    open_captions,
    open_first,
    phase_batches,
    split_pairs,
    to_rgb,
)
from vlnotes.text import encode, train_tokenizer
from vlnotes.train import pair_batches
from vlnotes.world import World, pairs

COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200)}


def paint(folder: Path, names: str = "abc", suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (12, 8), COLOURS[name]).save(folder / f"{name}{suffix}")


def coco(names: str = "abc") -> dict:
    """Two captions a picture; ids of pictures 10, 11, ..., of annotations 0, 1, ..."""
    return {
        "images": [{"id": 10 + i, "file_name": f"{name}.png"} for i, name in enumerate(names)],
        "annotations": [
            {"id": 2 * i + j, "image_id": 10 + i, "caption": f"picture {name}, caption {j}"}
            for i, name in enumerate(names)
            for j in range(2)
        ],
    }


def karpathy(names: str = "abc", splits: tuple[str, ...] = ("train", "restval", "test")) -> dict:
    return {
        "images": [
            {
                "filepath": "val2014",
                "filename": f"{name}.png",
                "cocoid": 10 + i,
                "split": split,
                "sentences": [{"raw": f"picture {name}, caption {j}", "tokens": []} for j in range(2)],
            }
            for i, (name, split) in enumerate(zip(names, splits, strict=True))
        ]
    }


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
    return path


EXPECTED = [[f"picture {name}, caption {j}" for j in range(2)] for name in "abc"]
ROWS = [(f"{name}.png", f"picture {name}, caption {j}") for name in "abc" for j in range(2)]
LAYOUTS = {
    "coco": ("x.json", coco()),
    "karpathy": ("x.json", karpathy()),
    "token": ("x.txt", "".join(f"{n}#{i % 2}\t{text}\n" for i, (n, text) in enumerate(ROWS))),
    "csv": ("x.csv", "File_Name,caption\n" + "".join(f'{n},"{text}"\n' for n, text in ROWS)),
    "semicolon": ("x.csv", "image;text\r\n" + "".join(f"{n};{text}\r\n" for n, text in ROWS)),
    "tsv": ("x.tsv", "path\tsentence\n" + "".join(f"{n}\t{text}\n" for n, text in ROWS)),
    "pipes": ("x.csv", "image_name| comment\n" + "".join(f"{n}| {text}\n" for n, text in ROWS)),
    "list": ("x.json", [{"image": n, "caption": text} for n, text in ROWS]),
    "list of lists": (
        "x.json",
        [{"image": f"{n}.png", "captions": EXPECTED[i]} for i, n in enumerate("abc")],
    ),
    "jsonl": ("x.jsonl", "".join(json.dumps({"file_name": n, "text": text}) + "\n" for n, text in ROWS)),
    "dict": ("x.json", {f"{name}.png": EXPECTED[i] for i, name in enumerate("abc")}),
}


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("where", [".", "images", "val2014"])
def test_every_layout_gives_the_same_pictures_and_captions(tmp_path, layout, where):
    if where == "val2014" and layout != "karpathy":
        where = "images"
    paint(tmp_path / where)
    file = write(tmp_path / LAYOUTS[layout][0], LAYOUTS[layout][1])
    for path in (file, tmp_path):  # the file itself, and a folder that holds it
        data = open_captions(path)
        assert len(data) == 3 and data.captions == EXPECTED
        assert [Path(f).parent for f in data.files] == [(tmp_path / where).resolve()] * 3
        picture, captions, number = data[1]
        assert (picture.mode, picture.size, picture.getpixel((3, 3))) == ("RGB", (12, 8), COLOURS["b"])
        assert captions == EXPECTED[1]
        assert number == (11 if layout in ("coco", "karpathy") else "b.png")
        assert data.skipped == [] and str(file) in repr(data) and data.layout in data.report()


def test_splits_of_a_karpathy_file(tmp_path):
    paint(tmp_path)
    file = write(tmp_path / "d.json", karpathy())
    assert open_captions(file).splits == ["train", "train", "test"]  # restval joins train
    assert "1 of restval" in open_captions(file).report()
    assert open_captions(file, "test").ids == [12]
    with pytest.raises(ValueError, match=r"no pictures of split 'val'; it has train \(2\), test \(1\)"):
        open_captions(file, "val")
    with pytest.raises(ValueError, match="restval counts as train"):
        open_captions(file, "restval")


def test_only_the_pictures_of_the_split_must_exist(tmp_path):
    paint(tmp_path, "c")
    file = write(tmp_path / "d.json", karpathy())
    assert open_captions(file, "test").ids == [12]
    with pytest.raises(ValueError, match=r"images\[0\]: no picture 'a.png' in .*2 of 3 pictures are missing"):
        open_captions(file)


def test_files_of_one_set_are_its_splits_as_coco_keeps_them(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split, names in (("train", "ab"), ("val", "c")):
        content = coco("abc")
        content["images"] = [image for image in content["images"] if image["file_name"][0] in names]
        numbers = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in numbers]
        write(tmp_path / "annotations" / f"captions_{split}2017.json", content)
        paint(tmp_path / f"{split}2017", names)
    boxes = {"images": coco()["images"], "annotations": [{"id": 1, "image_id": 10, "bbox": [0, 0, 1, 1]}]}
    write(tmp_path / "annotations" / "instances_val2017.json", boxes)
    data = open_captions(tmp_path)
    assert data.splits == ["train", "train", "val"] and data.captions == EXPECTED
    assert "not opened: instances_val2017.json" in data.report()
    assert open_captions(tmp_path / "annotations" / "captions_val2017.json", "val").captions == EXPECTED[2:]


def test_a_folder_of_several_layouts_opens_karpathy_and_says_so(tmp_path):
    paint(tmp_path)
    write(tmp_path / "captions.json", coco())
    write(tmp_path / "dataset.json", karpathy())
    write(tmp_path / "words.json", {"cat": {"en": "cat"}})
    data = open_captions(tmp_path)
    assert data.layout == "karpathy" and data.source.endswith("dataset.json")
    assert "captions.json (coco)" in data.report() and "words.json" in data.report()


def test_two_sets_in_one_folder_are_refused(tmp_path):
    paint(tmp_path)
    write(tmp_path / "one.json", coco())
    write(tmp_path / "two.json", coco())
    with pytest.raises(ValueError, match=r"one\.json \(coco\), two\.json \(coco\)\. Name one"):
        open_captions(tmp_path)


def test_pictures_may_be_elsewhere(tmp_path):
    paint(tmp_path / "far")
    file = write(tmp_path / "near.json", coco())
    assert len(open_captions(file, pictures=tmp_path / "far")) == 3


def test_captions_are_squeezed_and_any_number_a_picture_is_fine(tmp_path):
    paint(tmp_path, "ab")
    content = {"a.png": [" two  blanks ", "a line\nbreak\n", "über"], "b.png": "only one"}
    data = open_captions(write(tmp_path / "x.json", content))
    assert data.captions == [["two blanks", "a line break", "über"], ["only one"]]


def test_a_stray_full_stop_in_a_token_file_belongs_to_the_caption_above(tmp_path):
    paint(tmp_path, "a")
    data = open_captions(write(tmp_path / "x.token", "a.png#0\tready to be cut\n.\na.png#1\tan end\n"))
    assert data.captions == [["ready to be cut .", "an end"]]


def test_tables_with_split_id_and_concept_columns(tmp_path):
    paint(tmp_path)
    rows = "a.png,x,train,7,red\na.png,y,train,7,red\nb.png,z,valid,8,green\nc.png,w,test,9,\n"
    file = write(tmp_path / "x.csv", "image,caption,split,id,concept\n" + rows)
    data = open_captions(file)
    assert data.ids == ["7", "8", "9"] and data.concepts == ["red", "green", None]
    assert data.splits == ["train", "val", "test"]
    rows = "1,a.png,x\n2,a.png,y\n3,b.png,z\n"  # this id counts rows, so it cannot be the picture's
    assert open_captions(write(tmp_path / "y.csv", "id,image,caption\n" + rows)).ids == ["a.png", "b.png"]


def test_quotes_in_tables(tmp_path):
    paint(tmp_path, "ab")
    file = write(tmp_path / "x.csv", 'image,caption\na.png,"one, ""two""\nthree"\nb.png,plain\n')
    assert open_captions(file).captions == [['one, "two" three'], ["plain"]]
    file = write(tmp_path / "x.tsv", 'image\tcaption\na.png\t"Hi" says a sign\nb.png\t"all ""of"" it"\n')
    assert open_captions(file).captions == [['"Hi" says a sign'], ['all "of" it']]


# --- bad input --------------------------------------------------------------------------------------


def changed(change) -> dict:
    content = coco()
    change(content)
    return content


BAD = {  # name: (file, content, what the error says, pictures that stay with skip_bad, skipped entries)
    "missing picture": (
        "x.json",
        changed(lambda c: c["images"][1].update(file_name="no.png")),
        r"images\[1\]: no picture 'no.png' in ",
        2,
        1,
    ),
    "empty caption": (
        "x.json",
        changed(lambda c: c["annotations"][2].update(caption=" \n")),
        r"annotations\[2\]: the caption of 'b.png' is empty",
        3,
        1,
    ),
    "caption that is no text": (
        "x.json",
        changed(lambda c: c["annotations"][2].update(caption=5)),
        r"annotations\[2\]: the caption of 'b.png' is 5; expected text",
        3,
        1,
    ),
    "picture without caption": (
        "x.json",
        changed(lambda c: c["annotations"].__delitem__(slice(2, 4))),
        r"images\[1\]: picture 'b.png' has no caption",
        2,
        1,
    ),
    "all captions of a picture bad": (
        "x.json",
        changed(lambda c: [a.update(caption=None) for a in c["annotations"][2:4]]),
        r"annotations\[2\]: the caption of 'b.png' is None",
        2,
        3,
    ),
    "annotation of an unknown picture": (
        "x.json",
        changed(lambda c: c["annotations"][0].update(image_id=99)),
        r"annotations\[0\]: image_id 99 is the id of no entry in `images`",
        3,
        1,
    ),
    "annotation that is no dict": (
        "x.json",
        changed(lambda c: c["annotations"].append("text")),
        r"annotations\[6\]: expected a dict with `image_id` and `caption`, got 'text'",
        3,
        1,
    ),
    "duplicate picture id": (
        "x.json",
        changed(lambda c: c["images"].append({"id": 10, "file_name": "c.png"})),
        r"images\[3\]: duplicate id: 10 is already images\[0\]",
        3,
        1,
    ),
    "duplicate annotation id": (
        "x.json",
        changed(lambda c: c["annotations"][3].update(id=0)),
        r"annotations\[3\]: duplicate id: an earlier annotation has id 0",
        3,
        1,
    ),
    "same picture under two ids": (
        "x.json",
        changed(lambda c: c["images"][1].update(file_name="a.png")),
        r"images\[1\]: duplicate picture 'a.png': x.json, images\[0\] has it too",
        2,
        1,
    ),
    "id of a wrong kind": (
        "x.json",
        changed(lambda c: c["images"].append({"id": [1], "file_name": "a.png"})),
        r"images\[3\]: the picture's id is \[1\]; expected a number or text",
        3,
        1,
    ),
    "image without a file name": (
        "x.json",
        changed(lambda c: c["images"].append({"id": 5})),
        r"images\[3\]: expected a dict with `id` and `file_name`",
        3,
        1,
    ),
    "split of a wrong kind": (
        "x.json",
        changed(lambda c: c["images"][0].update(split=3)),
        r"images\[0\]: the split of 'a.png' is 3; expected text",
        2,
        1,
    ),
    "bytes that are no UTF-8 in JSON": (
        "x.json",
        json.dumps(coco()).replace("picture b, caption 1", "caf#").encode().replace(b"caf#", b"caf\xe9"),
        r"annotations\[3\]: the caption of 'b.png' holds bytes that are no UTF-8",
        3,
        1,
    ),
    "karpathy: duplicate cocoid": (
        "x.json",
        {"images": karpathy()["images"] + [{**karpathy()["images"][0], "filename": "c.png", "filepath": ""}]},
        r"images\[3\]: duplicate id 10: x.json, images\[0\] has it too",
        3,
        1,
    ),
    "karpathy: sentences missing": (
        "x.json",
        {"images": [*karpathy()["images"], {"filename": "d.png", "cocoid": 1}]},
        r"images\[3\]: expected a dict with `filename` and a list `sentences`",
        3,
        1,
    ),
    "token line without tab": (
        "x.token",
        "a.png#0\tone\nb.png#0 two\nb.png#1\ttwo\n",
        r"line 2: expected `name.jpg#0<TAB>caption`, got 'b.png#0 two'",
        2,
        1,
    ),
    "token line without number": (
        "x.token",
        "a.png#0\tone\nb.png\ttwo\n",
        r"line 2: expected `name.jpg#0<TAB>caption`",
        1,
        1,
    ),
    "token line of words alone": (
        "x.token",
        "a.png#0\tone\ntwo three\n",
        "line 2: expected `name.jpg#0",
        1,
        1,
    ),
    "token number twice": ("x.token", "a.png#0\tone\na.png#0\ttwo\n", "line 2: duplicate id: a.png#0", 1, 1),
    "bytes that are no UTF-8 in a token file": (
        "x.token",
        b"a.png#0\tone\nb.png#0\tcaf\xe9\n",
        r"line 2: the caption of 'b.png' holds bytes that are no UTF-8",
        1,
        2,
    ),
    "table row with too many cells": (
        "x.csv",
        "image,caption\na.png,one\nb.png,two, three\n",
        r"line 3: expected 2 columns \(image, caption\), got 3.*needs quotes",
        1,
        1,
    ),
    "table with an open quote": (
        "x.csv",
        'image,caption\na.png,one\nb.png,"two\n',
        "line 3: cannot be read",
        1,
        1,
    ),
    "table without a name": (
        "x.csv",
        "image,caption\na.png,one\n,two\n",
        "line 3: `image` should name",
        1,
        1,
    ),
    "table that contradicts itself": (
        "x.csv",
        "image,caption,split\na.png,one,train\na.png,two,test\n",
        "line 3: 'a.png' has another id, split or concept than in its first entry, line 2",
        1,
        1,
    ),
    "list item that is no dict": (
        "x.json",
        [{"image": "a.png", "caption": "x"}, 3],
        r"\[1\]: expected a dict",
        1,
        1,
    ),
    "dict with a key twice": ("x.json", '{"a.png": ["x"], "a.png": ["y"]}', '"a.png": duplicate id', 1, 1),
    "dict with a number": ("x.json", {"a.png": ["x"], "b.png": 3}, r'"b.png"\[0\]: the caption of', 1, 2),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_entries_are_refused_by_name_or_skipped_and_listed(tmp_path, case):
    paint(tmp_path)
    name, content, message, stay, skipped = BAD[case]
    file = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        open_captions(file)
    assert str(file) in str(error.value)
    data = open_captions(file, skip_bad=True)
    assert len(data) == stay and len(data.skipped) == skipped
    assert all(entry.file == str(file) for entry in data.skipped)
    entry = data.skipped[0]
    assert str(error.value) == f"{entry.file}, {entry.entry}: {entry.reason}"
    assert f"{skipped} skipped" in data.report()


REFUSED = {  # whole files of which nothing can be used: refused in both modes
    "no JSON": ("x.json", '{"images": [', "not valid JSON .*line 1 column"),
    "empty file": ("x.json", "", "the file is empty; expected COCO captions JSON"),
    "blank token file": ("x.token", "\n\n", "the file is empty"),
    "no annotations": ("x.json", {**coco(), "annotations": []}, "COCO JSON with 3 images and no annotations"),
    "no images": (
        "x.json",
        {**coco(), "images": []},
        "image_id 10 is the id of no entry|none of its 0|no pictures",
    ),
    "COCO instances": (
        "x.json",
        {**coco(), "annotations": [{"id": 1, "image_id": 10, "bbox": [0, 0, 1, 1], "category_id": 3}]},
        "COCO JSON without captions",
    ),
    "another layout": (
        "x.json",
        {"cat": {"en": "cat"}},
        r"JSON of another layout; its first keys are \['cat'\]",
    ),
    "captions without pictures": ("x.json", [{"image_id": 3, "caption": "x"}], "captions without pictures"),
    "a number": ("x.json", "3", "JSON, but only a int"),
    "no header": ("x.csv", "a.png,one\nb.png,two\n", "no header with a picture and a caption column"),
    "two caption columns": ("x.csv", "image,caption,text\na.png,one,two\n", "2 caption columns"),
    "header alone": ("x.csv", "image,caption\n", "no pictures in it"),
    "UTF-16": ("x.csv", "image,caption\na.png,one\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
    "a picture": ("x.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary, no text"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_files_of_which_nothing_can_be_used(tmp_path, case, skip_bad):
    paint(tmp_path)
    name, content, message = REFUSED[case]
    file = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as error:
        open_captions(file, skip_bad=skip_bad)
    assert str(file) in str(error.value)


def test_paths_that_hold_no_captions(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        open_captions(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no caption file. Seen: no file in .json"):
        open_captions(tmp_path)
    write(tmp_path / "labels.csv", "name,label\na.png,3\n")
    with pytest.raises(ValueError, match="holds no caption file. Seen: labels.csv .no token lines"):
        open_captions(tmp_path)


def test_an_empty_split(tmp_path):
    paint(tmp_path)
    write(tmp_path / "captions_train.json", coco())
    empty = write(tmp_path / "captions_val.json", {"images": [], "annotations": [{"caption": "x"}]})
    with pytest.raises(ValueError, match="captions_val.json"):
        open_captions(tmp_path)
    data = open_captions(tmp_path, skip_bad=True)
    assert len(data) == 3 and {entry.file for entry in data.skipped} == {str(empty)}
    with pytest.raises(ValueError, match=r"no pictures of split 'val'; it has train \(3\); 2 skipped"):
        open_captions(tmp_path, "val", skip_bad=True)


def test_a_broken_file_beside_a_good_one_is_not_passed_over(tmp_path):
    paint(tmp_path)
    write(tmp_path / "captions_train.json", coco())
    broken = write(tmp_path / "captions_val.json", '{"images": [{"id"')
    with pytest.raises(ValueError, match="captions_val.json, whole file: not valid JSON"):
        open_captions(tmp_path)
    data = open_captions(tmp_path, skip_bad=True)
    assert len(data) == 3 and data.skipped[0].file == str(broken)


def test_all_pictures_missing_is_an_error_in_both_modes(tmp_path):
    file = write(tmp_path / "x.json", coco())
    with pytest.raises(ValueError, match=r"none of its 3 pictures can be used; 3 skipped.*no picture 'a.png'"):
        open_captions(file, skip_bad=True)


# --- pictures ---------------------------------------------------------------------------------------


def saved(tmp_path: Path, image: Image.Image, name: str, **options) -> Image.Image:
    """The picture as it comes back through the dataset."""
    image.save(tmp_path / name, **options)
    data = open_captions(write(tmp_path / "x.json", {name: ["a caption"]}))
    picture = data[0][0]
    assert picture.mode == "RGB"
    return picture


def test_grey_and_one_bit(tmp_path):
    assert saved(tmp_path, Image.new("L", (4, 4), 77), "a.png").getpixel((0, 0)) == (77, 77, 77)
    assert saved(tmp_path, Image.new("1", (4, 4), 1), "b.png").getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    assert saved(tmp_path, image, "a.png").getpixel((0, 0)) == (10, 20, 30)
    clear = saved(tmp_path, image, "b.png", transparency=0)
    assert clear.getpixel((0, 0)) == (255, 255, 255) and clear.getpixel((1, 1)) == (200, 100, 50)


def test_alpha_is_composited_on_white(tmp_path):
    picture = saved(tmp_path, Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "a.png")
    assert picture.getpixel((0, 0)) == (204, 204, 204)  # 0.8 of white shows through
    assert saved(tmp_path, Image.new("LA", (4, 4), (9, 0)), "b.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path):
    picture = saved(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg", quality=95)
    assert np.abs(np.array(picture.getpixel((8, 8))) - (255, 0, 0)).max() <= 4


def test_sixteen_bit_grey(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    picture = saved(tmp_path, Image.fromarray(values), "a.png")
    assert np.asarray(picture)[..., 1].tolist() == [[0, 100], [200, 255]]
    with pytest.raises(ValueError, match="mode F with values 0 to 1; expected 8 or 16 bit"):
        to_rgb(Image.fromarray(np.eye(2, dtype=np.float32)))


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (16, 8), "blue")
    image.paste("red", (0, 0, 8, 8))  # stored: red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: red on top
    picture = saved(tmp_path, image, "a.png", exif=exif)
    assert picture.size == (8, 16)
    assert picture.getpixel((4, 2)) == (255, 0, 0) and picture.getpixel((4, 13)) == (0, 0, 255)


@pytest.fixture
def with_bad_pictures(tmp_path) -> Path:
    """Five pictures: a good PNG, a truncated JPEG, text, a good PNG, an empty file."""
    paint(tmp_path, "ac")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    names = ["a.png", "cut.jpg", "text.png", "c.png", "empty.png"]
    return write(tmp_path / "x.json", {name: [f"caption of {name}"] for name in names})


def test_pictures_that_do_not_decode_are_refused_by_name(with_bad_pictures):
    data = open_captions(with_bad_pictures)
    assert data[0][0].size == (12, 8)
    for index, name in ((1, "cut.jpg"), (2, "text.png"), (4, "empty.png")):
        message = rf'{name} has \d+ bytes and does not decode \(named by .*x.json, "{name}"\); expected a whole'
        with pytest.raises(ValueError, match=message):
            data[index]
    with pytest.raises(ValueError, match="3 of 5 pictures are bad; the first: .*cut.jpg"):
        data.verify(progress=False)
    with pytest.raises(ValueError, match="does not decode"):
        load_pictures(data, 8)
    assert len(data) == 5


def test_pictures_that_do_not_decode_are_dropped_and_listed(with_bad_pictures):
    data = open_captions(with_bad_pictures, skip_bad=True)
    gone = data.verify(progress=False)
    assert [entry.entry for entry in gone] == [
        '"cut.jpg"',
        '"text.png"',
        '"empty.png"',
    ] and data.skipped == gone
    assert data.ids == ["a.png", "c.png"] and data.captions == [["caption of a.png"], ["caption of c.png"]]
    assert data.verify(progress=False) == []

    data = open_captions(with_bad_pictures, skip_bad=True)
    images = load_pictures(data, 8)
    assert len(images) == len(data) == 2 and len(data.skipped) == 3
    assert images[1, :, 4, 4].tolist() == list(COLOURS["c"])

    data = open_captions(with_bad_pictures, skip_bad=True)
    with pytest.raises(ValueError, match="1 of the chosen pictures do not decode.*return_indices=True"):
        load_pictures(data, 8, indices=[3, 1, 0])
    assert len(data) == 5  # and nothing was dropped by that
    images, place = load_pictures(data, 8, indices=[3, 1, 0], return_indices=True)
    assert [data.ids[i] for i in place] == ["c.png", "a.png"]
    assert images[0, :, 4, 4].tolist() == list(COLOURS["c"])


def test_a_picture_deleted_after_opening(tmp_path):
    paint(tmp_path)
    data = open_captions(write(tmp_path / "x.json", coco()))
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match=r"b.png is gone \(named by .*images\[1\]\)"):
        data[1]


def test_load_pictures_resizes_and_crops_as_torchvision_does(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (16, 32, 3), dtype=np.uint8)
    wide = Image.fromarray(noise)
    tall = wide.rotate(90, expand=True)
    wide.save(tmp_path / "wide.png")
    tall.save(tmp_path / "tall.png")
    data = open_captions(write(tmp_path / "x.json", {"wide.png": "x", "tall.png": "y"}))
    images = load_pictures(data, 8)
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.uint8
    resize = transforms.Resize(8, transforms.InterpolationMode.BICUBIC)
    reference = transforms.Compose([resize, transforms.CenterCrop(8), transforms.PILToTensor()])
    expected = torch.stack([reference(wide), reference(tall)])
    assert (images.int() - expected.int()).abs().max() <= 1  # rounding: it resizes what it then crops away
    swapped, place = load_pictures(data, 8, indices=[1, 0], return_indices=True)
    assert torch.equal(swapped, images.flip(0)) and place.tolist() == [1, 0]
    with pytest.raises(ValueError, match="indices 0 to 2; the dataset has pictures 0 to 1"):
        load_pictures(data, 8, indices=[0, 2])


def test_shrinking_is_antialiased_also_for_jpegs_decoded_small(tmp_path):
    stripes = np.zeros((512, 512), dtype=np.uint8)
    stripes[:, ::2] = 255
    for name in ("a.png", "b.jpg"):
        Image.fromarray(stripes).save(tmp_path / name)
    images = load_pictures(open_captions(write(tmp_path / "x.json", {"a.png": "x", "b.jpg": "y"})), 16)
    assert (images.float() - 127.5).abs().max() < 3  # fine stripes become even grey, not a pattern


# --- into batches -----------------------------------------------------------------------------------


class Letters:
    """A stand-in for a tokenizer: the code of every letter, called as transformers' tokenizers are."""

    pad_token_id = 0

    def __call__(self, texts, padding, truncation, max_length, return_tensors, return_token_type_ids):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        ids = torch.zeros(len(texts), max_length, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            codes = [ord(letter) for letter in text[:max_length]]
            row[: len(codes)] = torch.tensor(codes)
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


@pytest.fixture
def uneven(tmp_path):
    """Three pictures with one, three and two captions; a and c show the same concept."""
    paint(tmp_path)
    rows = "a.png,a0,k\nb.png,b0,\nb.png,b1,\nb.png,b2,\nc.png,c0,k\nc.png,c1,k\n"
    return open_captions(write(tmp_path / "x.csv", "image,caption,concept\n" + rows))


def text_of(row: torch.Tensor) -> str:
    return "".join(chr(code) for code in row.tolist() if code)


def test_caption_targets(uneven):
    targets = caption_targets(uneven)
    assert targets.captions == ["a0", "b0", "b1", "b2", "c0", "c1"]
    assert targets.text_to_image.tolist() == [0, 1, 1, 1, 2, 2]
    right = targets.image_concept[:, None] == targets.text_concept  # (N, M)
    assert right.int().tolist() == [[1, 0, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1]]


def test_pairs_draw_every_caption_of_the_right_picture(uneven):
    pairs = PairDataset(uneven, Letters(), size=8, length=4, generator=torch.Generator().manual_seed(0))
    seen = [{text_of(pairs[i]["input_ids"]) for _ in range(40)} for i in range(3)]
    assert seen == [{"a0"}, {"b0", "b1", "b2"}, {"c0", "c1"}]
    again = PairDataset(uneven, Letters(), size=8, length=4, generator=torch.Generator().manual_seed(0))
    first = [text_of(again[1]["input_ids"]) for _ in range(20)]
    again.generator.manual_seed(0)
    copy = pickle.loads(pickle.dumps(again))  # as for the workers of a DataLoader; the draws go with it
    assert first == [text_of(copy[1]["input_ids"]) for _ in range(20)]
    assert first == [text_of(again[1]["input_ids"]) for _ in range(20)]
    fixed = PairDataset(uneven, Letters(), size=8, length=4)
    assert {text_of(fixed[1]["input_ids"]) for _ in range(20)} == {"b0"}  # no generator: always the first


def test_pairs_from_memory_and_from_disk_agree(uneven):
    disk = PairDataset(uneven, Letters(), size=8, length=4)
    memory = PairDataset(uneven, Letters(), load_pictures(uneven, 8), length=4)
    for one, other in zip(disk, memory, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    batch = disk.batch(torch.tensor([2, 0]), torch.Generator().manual_seed(1))
    assert batch["image"].shape == (2, 3, 8, 8) and batch["image"].dtype == torch.uint8
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 4)
    assert batch["ids"].tolist() == [2, 0] and text_of(batch["input_ids"][1]) == "a0"
    with pytest.raises(ValueError, match="2 images for 3 pictures"):
        PairDataset(uneven, Letters(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_draws_anew_every_epoch(uneven, workers):
    def epochs() -> list[list[str]]:
        pairs = PairDataset(uneven, Letters(), size=8, length=4, generator=torch.Generator().manual_seed(0))
        order = torch.Generator().manual_seed(1)
        loader = DataLoader(pairs, batch_size=3, num_workers=workers, generator=order)
        texts = []
        for _ in range(6):
            (batch,) = loader
            assert sorted(batch["ids"].tolist()) == [0, 1, 2]
            by_id = dict(zip(batch["ids"].tolist(), map(text_of, batch["input_ids"]), strict=True))
            texts.append([by_id[i] for i in range(3)])
            assert all(text[0] == "abc"[i] for i, text in enumerate(texts[-1]))
        return texts

    first = epochs()
    assert len({tuple(texts) for texts in first}) > 1
    assert first == epochs()  # same seeds, same captions


def sample(number: int, ids: list[int], size: int = 4, pad: int = 0) -> dict:
    mask = torch.tensor([1] * len(ids) + [0] * pad)
    image = torch.full((3, size, size), number, dtype=torch.uint8)
    ids = torch.tensor(ids + [0] * pad)
    return {"image": image, "input_ids": ids, "attention_mask": mask, "ids": torch.tensor(number), "word": "x"}


def test_collate_pads_to_the_longest_and_cuts_what_all_share():
    batch = collate([sample(7, [2, 5, 3], pad=5), sample(9, [2, 3]), sample(8, [2, 6, 6, 3])], pad_id=1)
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0], [2, 3, 1, 1], [2, 6, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["ids"].tolist() == [7, 9, 8] and batch["word"] == ["x"] * 3
    assert batch["image"].dtype == torch.uint8 and batch["image"][:, 0, 0, 0].tolist() == [7, 9, 8]
    assert collate([{"ids": 4}, {"ids": 2}])["ids"].tolist() == [4, 2]  # no captions, plain numbers


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([sample(0, [2, 3]), sample(5, [2, 3], size=6)], ValueError, r"sample 1 of the batch \(id 5\): image.*6, 6"),
        ([sample(0, [2, 3]), {"ids": 3}], ValueError, r"sample 1 of the batch \(id 3\): has the keys \['ids'\]"),
        ([{"image": Image.new("RGB", (4, 4))}], TypeError, "sample 0 of the batch: image is Image; expected a tensor"),
        (
            [{"input_ids": torch.ones(3), "attention_mask": torch.ones(2)}],
            ValueError,
            "sample 0 of the batch: attention_mask",
        ),
    ],
)
def test_collate_names_the_sample_that_does_not_fit(samples, error, message):
    with pytest.raises(error, match=message):
        collate(samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_collate_in_a_data_loader(uneven, workers):
    data = PairDataset(uneven, Letters(), size=8, length=6)
    batches = list(DataLoader(data, batch_size=2, num_workers=workers, collate_fn=collate))
    assert [batch["ids"].tolist() for batch in batches] == [[0, 1], [2]]
    assert [batch["input_ids"].shape for batch in batches] == [(2, 2), (1, 2)]  # two letters each, four of padding
    whole = data.batch([0, 1])
    assert torch.equal(batches[0]["image"], whole["image"])
    assert torch.equal(batches[0]["input_ids"], whole["input_ids"][:, :2])


# --- streams ----------------------------------------------------------------------------------------


def every(phases) -> list[int]:
    return sorted(torch.cat([phase.indices for phase in phases]).tolist())


def test_pieces_are_equal_disjoint_and_whole():
    phases = cut(22, 5, seed=1)
    assert [phase.name for phase in phases] == [f"{k} of 5" for k in range(1, 6)]
    assert [len(phase.indices) for phase in phases] == [5, 5, 4, 4, 4] and every(phases) == list(range(22))
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(phases, cut(22, 5, seed=1), strict=True))
    assert not torch.equal(phases[0].indices, cut(22, 5, seed=2)[0].indices)
    assert phases[0].indices.tolist() != [0, 1, 2, 3, 4]  # shuffled first
    for pieces in (0, 23):
        with pytest.raises(ValueError, match=f"pieces is {pieces}; expected 1 to 22"):
            cut(22, pieces)


def test_phases_by_label_in_order_of_appearance_or_as_given():
    makers = ["noto", "fx", "noto", "twe", "fx"]
    phases = by_label(makers)
    assert [(p.name, p.indices.tolist()) for p in phases] == [("noto", [0, 2]), ("fx", [1, 4]), ("twe", [3])]
    phases = by_label(makers, ["twe", ("noto", "fx")])
    assert [(p.name, p.indices.tolist()) for p in phases] == [("twe", [3]), ("noto + fx", [0, 1, 2, 4])]
    assert [p.name for p in by_label(torch.tensor([3, 1, 3]))] == ["3", "1"]
    shapes = [scene.objects[0].shape for scene in World().single(200)]
    order = sorted(set(shapes))
    phases = by_label(shapes, [order[:7], order[7:]])  # class-incremental
    assert every(phases) == list(range(200)) and {shapes[i] for i in phases[0].indices} == set(order[:7])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"], r"in no group: \['b', 'c'\]"),
        (["a", "b", ("c", "a")], r"named twice: \['a'\]"),
        (["a", "b", "c", "d"], r"of no sample: \['d'\]"),
        (["a", "b", "c", ()], "an empty group"),
        ([], r"in no group: \['a', 'b', 'c'\]"),
    ],
)
def test_groups_that_would_lose_or_double_samples_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        by_label(list("abca"), groups)
    with pytest.raises(ValueError, match="labels is empty"):
        by_label([])


def counted(n: int, m: int):
    """n pictures whose pixels are their number, m captions of one token, caption j of picture j % n."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2)
    tokens = {"input_ids": torch.arange(m).view(m, 1), "attention_mask": torch.ones(m, 1, dtype=torch.long)}
    return images, tokens, torch.arange(m) % n


def test_split_pairs_keeps_captions_with_their_pictures_and_loses_none():
    images, tokens, owner = counted(11, 30)
    phases = cut(11, 3)
    parts = split_pairs(phases, images, tokens, owner)
    assert sum(len(part.owner) for part in parts) == 30
    for phase, part in zip(phases, parts, strict=True):
        assert part.name == phase.name and torch.equal(part.images[:, 0, 0, 0].long(), phase.indices)
        assert torch.equal(phase.indices[part.owner], part.tokens["input_ids"][:, 0] % 11)
        assert len(part.tokens["attention_mask"]) == len(part.owner)
    with pytest.raises(ValueError, match=r"exactly one phase; \d to none .*, 0 to several"):
        split_pairs(phases[:2], images, tokens, owner)
    with pytest.raises(ValueError, match=r"0 to none \[\], 4 to several"):
        split_pairs([*phases, phases[0]], images, tokens, owner)
    with pytest.raises(ValueError, match="phases name pictures 0 to 10; there are 9"):
        split_pairs(phases, images[:9], tokens, owner % 9)
    with pytest.raises(ValueError, match="owner runs from 0 to 10; expected pictures 0 to 8"):
        split_pairs(phases, images[:9], tokens, owner)
    with pytest.raises(ValueError, match="owner has 29 captions, tokens have input_ids 30, attention_mask 30"):
        split_pairs(phases, images, tokens, owner[:29])


def test_phase_batches_are_pair_batches_with_ids_of_the_whole_stream():
    images, tokens, owner = counted(12, 30)
    phases = by_label([i % 3 for i in range(12)], [2, 0, 1])
    parts = split_pairs(phases, images, tokens, owner)
    stream = phase_batches(parts, batch_size=4, seed=5)
    assert list(stream) == ["2", "0", "1"]
    place = torch.cat([phase.indices for phase in phases])
    seen = set()
    for number, (part, batch_at) in enumerate(zip(parts, stream.values(), strict=True)):
        alone = pair_batches(*part[1:], batch_size=4, seed=5)
        for step in range(20):
            batch, own = batch_at(step), alone(step)
            assert all(torch.equal(batch[name], own[name]) for name in ("image", "input_ids", "attention_mask"))
            assert torch.equal(batch["ids"], own["ids"] + 4 * number)
            assert torch.equal(place[batch["ids"]], batch["image"][:, 0, 0, 0].long())
            seen |= set(batch["input_ids"][:, 0].tolist())
    assert seen == set(range(30))


def test_phases_that_cannot_be_trained_on_are_named():
    part = ("one", *counted(4, 4))
    with pytest.raises(ValueError, match="two phases are called 'one'"):
        phase_batches([part, part], 2)
    with pytest.raises(ValueError, match="phase 'one': 4 pictures do not fill one batch of 8"):
        phase_batches([part], 8)
    with pytest.raises(
        ValueError, match=r"phase 'one': every one of the 4 pictures needs a caption; without one: \[3\]"
    ):
        phase_batches([("one", *counted(4, 4)[:2], torch.tensor([0, 1, 2, 0]))], 2)
    with pytest.raises(ValueError, match="at least one phase"):
        phase_batches([])


def test_domains_of_the_world_are_a_stream():
    made = {name: pairs(World(name).scenes(6), size=16) for name in ("paper", "neon")}
    tokenizer = train_tokenizer([text for data in made.values() for text in data.texts])
    parts = [(n, d.images, encode(tokenizer, d.texts), d.text_to_image) for n, d in made.items()]
    stream = phase_batches(parts, batch_size=3)
    for number, (name, batch_at) in enumerate(stream.items()):
        batch = batch_at(0)
        assert torch.equal(made[name].images[batch["ids"] - 6 * number], batch["image"])


# --- real files -------------------------------------------------------------------------------------


def test_real_coco_in_four_layouts(realdata):
    folder = realdata / "coco_cc_mini"
    names = ("captions_cc.json", "dataset_coco_mini.json", "results_20130124_style.token")
    by_file = [open_captions(folder / name) for name in names]
    for data in by_file:
        assert len(data) == 108 and sum(map(len, data.captions)) == 540 and not data.skipped
        pairs = zip(data.files, data.captions, strict=True)
        assert {Path(f).name: sorted(c) for f, c in pairs} == {
            Path(f).name: sorted(c) for f, c in zip(by_file[0].files, by_file[0].captions, strict=True)
        }
        assert all(text == " ".join(text.split()) for captions in data.captions for text in captions)
    assert by_file[0].verify(progress=False) == []
    whole = open_captions(folder)
    assert whole.layout == "karpathy" and whole.captions == by_file[1].captions
    sizes = [len(open_captions(folder, split)) for split in ("train", "val", "test")]
    assert sum(sizes) == 108 and sizes[0] == 66
    with pytest.raises(ValueError, match="without captions"):
        open_captions(folder / "instances_cc.json")


def test_real_emoji_by_split_and_concept(realdata):
    data = open_captions(realdata / "emoji_dev")
    assert len(data) == 6789 and len(set(data.concepts)) == 1644
    sizes = {split: len(open_captions(realdata / "emoji_dev", split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 5488, "val": 719, "test": 582}
    images = load_pictures(data, 32, indices=range(64))
    assert images.shape == (64, 3, 32, 32) and images.float().std() > 10
    assert len(caption_targets(data).captions) == 33945
    makers = [extra["vendor"] for extra in data.extra]
    phases = by_label(makers)
    assert len(phases) == 5 and every(phases) == list(range(6789))


def test_the_first_set_in_a_folder_of_sets(tmp_path):
    for name, pictures in (("2", "a"), ("1", "bc")):
        paint(tmp_path / "sets" / name, pictures)
        table = {f"{picture}.png": [f"{name}{picture}"] for picture in pictures}
        (tmp_path / "sets" / name / "captions.json").write_text(json.dumps(table))
    (tmp_path / "sets" / "0").mkdir()  # nothing in it: the next one is taken
    assert open_first(tmp_path / "sets").captions == [["1b"], ["1c"]]
    assert open_first(tmp_path / "sets" / "2").captions == [["2a"]]
    assert open_first(tmp_path / "sets" / "2" / "captions.json").captions == [["2a"]]
    (tmp_path / "sets" / "1" / "c.png").unlink()
    assert open_first(tmp_path / "sets", skip_bad=True).captions == [["1b"]]
    assert open_first(tmp_path / "sets").captions == [["2a"]]
    (tmp_path / "none" / "inner").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no set of pictures with captions: .*none.*; .*inner"):
        open_first(tmp_path / "none")
