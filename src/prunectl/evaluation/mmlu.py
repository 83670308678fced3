"""The 57 subjects of MMLU (Hendrycks et al., arXiv 2009.03300) in its four groups."""

from __future__ import annotations

_GROUPS = {
    "humanities": """formal_logic high_school_european_history high_school_us_history
        high_school_world_history international_law jurisprudence logical_fallacies moral_disputes
        moral_scenarios philosophy prehistory professional_law world_religions""",
    "social sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology
        human_sexuality professional_psychology public_relations security_studies sociology
        us_foreign_policy""",
    "STEM": """abstract_algebra astronomy college_biology college_chemistry
        college_computer_science college_mathematics college_physics computer_security
        conceptual_physics electrical_engineering elementary_mathematics high_school_biology
        high_school_chemistry high_school_computer_science high_school_mathematics
        high_school_physics high_school_statistics machine_learning""",
    "other": """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging
        management marketing medical_genetics miscellaneous nutrition professional_accounting
        professional_medicine virology""",
}
"""As its authors' ``categories.py`` has them; some harnesses count anatomy to STEM."""

GROUP_OF = {subject: group for group, names in _GROUPS.items() for subject in names.split()}
"""The group of each subject."""
GROUPS = tuple(_GROUPS)


def group_of(subject: str) -> str:
    """The group of a subject of MMLU; any other subject is a group of its own."""
    return GROUP_OF.get("_".join(subject.casefold().split()), subject)
