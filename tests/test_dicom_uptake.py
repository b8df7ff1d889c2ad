"""PET in standardised uptake values: by numbers worked out by hand, or refused with what the header lacks."""

import json

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicoms import write_series

from sam3dnet.cli import dicom as dicom_command
from sam3dnet.dicom.choosing import choose_stacks, read_rules, rule_of_name, rules_of
from sam3dnet.dicom.files import read_headers
from sam3dnet.dicom.stacks import find_stacks
from sam3dnet.dicom.uptake import suv_factor
from sam3dnet.dicom.volumes import read_image
from sam3dnet.errors import DatasetError

HALF_LIFE = 6600.0  # s, of 18F nearly: 110 minutes
DOSE, WEIGHT = 4e8, 80.0
STORED = np.arange(60, dtype=np.int16).reshape(3, 4, 5) * 100


def injected(**elements):
    part = pydicom.Dataset()
    for keyword, value in (
        {
            "RadionuclideTotalDose": DOSE,
            "RadionuclideHalfLife": HALF_LIFE,
            "RadiopharmaceuticalStartTime": "101000.00",
        }
        | elements
    ).items():
        if value is not None:
            setattr(part, keyword, value)
    return part


def write_pet(folder, *injections, **elements):
    given = {
        "modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "PatientWeight": WEIGHT,
        "SeriesDate": "20260301",
        "SeriesTime": "120000",
        "AcquisitionDate": "20260301",
        "each": {"AcquisitionTime": ["120400", "120000", "120200"]},
        "RadiopharmaceuticalInformationSequence": list(injections) or [injected()],
    } | elements
    write_series(folder, STORED, **{key: value for key, value in given.items() if value is not None})


def only_stack(folder):
    (stack,) = find_stacks(read_headers(folder).instances)
    return stack


HOURS = {  # what is said of the times -> half-lives from the injection to the time that values are corrected to
    "one half-life": ({}, {}, 1.0),
    "corrected to the injection": ({"DecayCorrection": "ADMIN"}, {}, 0.0),
    "with a date": ({}, {"RadiopharmaceuticalStartDateTime": "20260301082000.00+0100"}, 2.0),
    "in the zone of the images": (
        {"TimezoneOffsetFromUTC": "+0100"},
        {"RadiopharmaceuticalStartDateTime": "20260301072000.00+0000"},
        2.0,
    ),
    "west of it": (
        {"TimezoneOffsetFromUTC": "-0330"},
        {"RadiopharmaceuticalStartDateTime": "20260301134000.00+0000"},
        1.0,
    ),
    "in UTC, the images' zone unsaid": ({}, {"RadiopharmaceuticalStartDateTime": "20260301091000+0000"}, 1.0),
    "a clock in the zone of the images": (
        {"TimezoneOffsetFromUTC": "+0100"},
        {"RadiopharmaceuticalStartDateTime": "20260301101000"},
        1.0,
    ),
    "before midnight": ({"SeriesTime": "003000", "each": {}}, {"RadiopharmaceuticalStartTime": "224000"}, 1.0),
    "scanned over midnight": (
        {"SeriesTime": "235000", "AcquisitionDate": None, "each": {"AcquisitionTime": ["000800", "235000", "000400"]}},
        {"RadiopharmaceuticalStartTime": "220000"},
        1.0,
    ),
    "a series made later": ({"SeriesTime": "180000"}, {}, 1.0),
    "no time of the series": ({"SeriesTime": None}, {}, 1.0),
    "no times of slices": ({"each": {}}, {}, 1.0),
}


@pytest.mark.parametrize("times", HOURS)
def test_activity_becomes_uptake_by_weight_and_decayed_dose(tmp_path, times):
    elements, of_injection, half_lives = HOURS[times]
    write_pet(tmp_path, injected(**of_injection), **elements)
    expected = WEIGHT * 1000 / (DOSE * 0.5**half_lives)
    assert suv_factor(only_stack(tmp_path)) == pytest.approx(expected, rel=1e-6)
    (stack,) = choose_stacks([only_stack(tmp_path)], ["SUV"], [rule_of_name("SUV")])
    np.testing.assert_allclose(sitk.GetArrayFromImage(read_image(stack)), STORED * expected, rtol=1e-5)
    (stack,) = choose_stacks([only_stack(tmp_path)], ["PET"], [rule_of_name("PET")])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(stack)), STORED)


def test_what_is_uptake_already_stays_and_counts_have_a_factor(tmp_path):
    write_pet(tmp_path / "gml", Units="GML", PatientWeight=None, rescale=[(0.5, 0)] * 3)
    assert suv_factor(only_stack(tmp_path / "gml")) == 1
    write_pet(tmp_path / "cnts", Units="CNTS")
    with pytest.raises(DatasetError, match=r"the factor to SUV \(7053,1000\) is missing"):
        suv_factor(only_stack(tmp_path / "cnts"))
    for file in (tmp_path / "cnts").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.add_new((0x7053, 0x0010), "LO", "Philips PET Private Group")
        dataset.add_new((0x7053, 0x1000), "DS", "0.00025")
        dataset.save_as(file)
    assert suv_factor(only_stack(tmp_path / "cnts")) == 0.00025


REFUSED = {
    "no weight": ({"PatientWeight": None}, {}, "PatientWeight is missing"),
    "a weight of 0": ({"PatientWeight": 0}, {}, "PatientWeight is missing"),
    "a dose in MBq": ({}, {"RadionuclideTotalDose": 400}, "a dose of 400 Bq is not one of a patient"),
    "no dose": ({}, {"RadionuclideTotalDose": None}, "RadionuclideTotalDose is missing"),
    "no half-life": ({}, {"RadionuclideHalfLife": None}, "RadionuclideHalfLife is missing"),
    "no injection": ({}, {"RadiopharmaceuticalStartTime": None}, "when the dose was injected is not said"),
    "injected later": (
        {},
        {"RadiopharmaceuticalStartDateTime": "20260302101000"},
        "injected at 2026-03-02 10:10:00, and the images start at 2026-03-01 12:00:00",
    ),
    "not corrected": ({"DecayCorrection": "NONE"}, {}, "its decay correction is NONE, expected START or ADMIN"),
    "no times": ({"SeriesTime": None, "each": {}}, {}, "when it was acquired is not said"),
    "other units": ({"Units": "PROPCPS"}, {}, "its unit is PROPCPS, expected BQML, CNTS or GML"),
    "by lean mass": ({"Units": "GML", "SUVType": "LBM"}, {}, "its SUV is not by body weight but LBM"),
    "no PET": ({"modality": "MR"}, {}, "SUV is asked for, and it is MR"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_header_lacks_is_told(tmp_path, fault):
    elements, of_injection, message = REFUSED[fault]
    write_pet(tmp_path, injected(**of_injection), **elements)
    with pytest.raises(DatasetError, match=rf"cannot be turned into SUV: .*{message}.*export it in units of SUV"):
        suv_factor(only_stack(tmp_path))


def test_two_injections_are_one_too_many(tmp_path):
    write_pet(tmp_path, injected(), injected())
    with pytest.raises(DatasetError, match="it names 2 injections, expected one"):
        suv_factor(only_stack(tmp_path))


def test_rules_and_names_ask_for_it_and_the_list_shows_the_unit(tmp_path, capsys):
    write_pet(tmp_path / "pet")
    (tmp_path / "rules.json").write_text(json.dumps({"channels": {"PET": {"modality": "PT", "units": "SUV"}}}))
    (rule,) = read_rules(tmp_path / "rules.json", ["PET"])
    (stack,) = choose_stacks([only_stack(tmp_path / "pet")], ["PET"], [rule])
    assert stack.units == "SUV"
    assert [one.units for one in rules_of(["PET_SUV", "CT", "PET"], ["1", "2", "3"], None)] == ["SUV", None, None]
    assert [rule_of_name(name).modality for name in ("SUVbw", "pet suv", "suvery")] == ["PT", "PT", None]
    assert dicom_command.main(["list", str(tmp_path / "pet")]) == 0
    assert "unit BQML" in capsys.readouterr().out
