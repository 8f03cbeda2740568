"""Images in files: right, or one line; and what preprocessor_config.json says of them."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.config_media import Stem
from jaxgen.data.media import Pixels, read_image
from jaxgen.errors import CheckpointError, ConfigError, DataError
from jaxgen.pretrained.preprocessor import read_pixels

STEM = Stem(kind="patches", channels=3, size=4, patch=2)
RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(
        ">I", zlib.crc32(name + content)
    )  # fmt: skip


def huge():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def png(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_colours_are_read_upright_in_any_mode(tmp_path, png):
    np.testing.assert_array_equal(read_image(png), RAMP)
    grey = RAMP[..., 0]
    cases = {
        "grey.png": (Image.fromarray(grey), np.repeat(grey[..., None], 3, -1)),
        "palette.png": (Image.fromarray(RAMP).quantize(256), RAMP),
    }  # fmt: skip
    for name, (image, wanted) in cases.items():
        image.save(tmp_path / name)
        np.testing.assert_allclose(read_image(tmp_path / name), wanted, atol=1)
    deep = Image.fromarray((254 - grey).astype(np.uint16) * 257 + 200)
    deep.save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 1], 254 - grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "lying.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "lying.png"), np.rot90(RAMP, -1))
    inks = Image.fromarray(RAMP).convert("CMYK")
    inks.save(tmp_path / "inks.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "inks.tiff"), np.array(inks.convert("RGB")))
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="holds 2 images; the first is read"):
        np.testing.assert_allclose(read_image(tmp_path / "moving.gif"), RAMP, atol=2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda raw: raw[:-30], "holds no whole image"),
        (lambda raw: b"", "holds no whole image"),
        (lambda raw: b"just words\n" * 9, "holds no whole image .cannot identify image file it"),
        (
            lambda raw: huge(),
            "10000000000 pixels. exceeds limit of 178956970 pixels; make it smaller",
        ),
    ],
)
def test_what_holds_no_image_is_one_line(png, content, reason):
    png.write_bytes(content(png.read_bytes()))
    with pytest.raises(DataError, match=reason) as caught:
        read_image(png)
    assert "\n" not in str(caught.value)
    Image.fromarray(RAMP[..., 0].astype(np.float32)).save(png.with_suffix(".tiff"))
    with pytest.raises(DataError, match="are floats"):
        read_image(png.with_suffix(".tiff"))
    Image.fromarray(RAMP[..., 0].astype(np.int32) * 70_000).save(png.with_suffix(".tiff"))
    with pytest.raises(DataError, match="have 32 bits"):
        read_image(png.with_suffix(".tiff"))
    with pytest.raises(ConfigError, match="is no file"):
        read_image(png.parent)


def test_an_image_is_resized_cut_and_normalised():
    whole = Pixels(rescale_factor=None)(RAMP)
    np.testing.assert_array_equal(whole, RAMP.astype(np.float32))
    for size, there in ((2, slice(1, 3)), (3, slice(0, 3))):
        middle = Pixels(rescale_factor=None, crop_size=(size, size))(RAMP)
        np.testing.assert_array_equal(middle, whole[there, there])
    wide = Pixels(rescale_factor=None, crop_size=(4, 6))(RAMP)
    assert not wide[:, [0, 5]].any() and (wide[:, 1:5] == whole).all()
    assert Pixels(size=2)(np.zeros((4, 9, 3), np.uint8)).shape == (2, 4, 3)
    assert Pixels(size=2)(np.zeros((9, 4, 3), np.uint8)).shape == (4, 2, 3)
    for odd in (RAMP.astype(np.float32), RAMP[..., 0], RAMP[:0]):
        with pytest.raises(ConfigError, match="give bytes"):
            Pixels()(odd)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"do_pad": True}, "do_pad=True is not known here"),
        ({"size": {"height": 4, "width": 0}}, r"size=\(4, 0\) must be greater than 0"),
        ({"size": {"longest_edge": 4}}, "size=.*longest_edge.* is not known here"),
        ({"size": {"shortest_edge": 4, "longest_edge": 9}}, "longest_edge.* is not known here"),
        ({"size": {"height": 4, "width": "4"}}, "size"),
        ({"resample": 9}, "resample=9 is none of 0 to 5"),
        ({"resample": "bilinear"}, "resample='bilinear' is none of 0 to 5"),
        ({"image_processor_type": "BlipImageProcessor"}, "known are ViT, DeiT, CLIP"),
        ({"size": 5}, r"images of \(5, 5\), 3 colours, but the model reads 4 x 4 of 3"),
        ({"size": {"shortest_edge": 4}}, "images of any size"),
        ({"size": 4, "do_center_crop": True}, r"images of \(224, 224\)"),
        ({"size": 4, "image_mean": [0.5, 0.5]}, "image_mean"),
        ({"size": 4, "image_std": [1, 0, 1]}, "image_std=.* must be greater than 0"),
        ({"size": 4, "rescale_factor": 0}, "rescale_factor=.* must be greater than 0"),
        ({"size": 4, "rescale_factor": "x"}, "rescale_factor"),
        ({"size": 4, "do_resize": "no"}, "do_resize='no' is neither true nor false"),
        ({"size": 4, "do_convert_rgb": "x"}, "do_convert_rgb='x' is neither true nor false"),
    ],
)
def test_settings_that_are_not_followed_are_refused(tmp_path, said, reason):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_pixels(tmp_path, STEM)
    assert str(caught.value).startswith(f"{tmp_path}") and "\n" not in str(caught.value)


def test_settings_are_those_of_the_file_or_of_their_kind(tmp_path):
    plain = read_pixels(None, STEM)
    assert (plain.size, plain.resample, plain.image_mean) == ((4, 4), "bilinear", (0.5, 0.5, 0.5))
    about = {"feature_extractor_type": "ViTFeatureExtractor", "size": 4, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about | {"do_rescale": False}))
    own = read_pixels(tmp_path, STEM)
    assert (own.size, own.resample, own.rescale_factor) == ((4, 4), "bicubic", None)
    about = {"image_processor_type": "CLIPImageProcessorFast", "size": 6, "crop_size": 4}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    own = read_pixels(tmp_path, STEM)
    assert (own.size, own.resample, own.crop_size) == (6, "bicubic", (4, 4))
    (tmp_path / "preprocessor_config.json").write_text('{"size": 4, "resample": null}')
    assert read_pixels(tmp_path, STEM).resample == "bilinear"


def test_a_front_end_takes_what_can_be():
    with pytest.raises(ConfigError, match="give both or none"):
        Pixels(image_mean=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"crop_size=.* must be greater than 0"):
        Pixels(crop_size=(0, 4))
    with pytest.raises(ConfigError, match="resample"):
        Pixels(resample="cubic")
