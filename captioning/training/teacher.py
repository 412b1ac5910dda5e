"""The trained models that an objective learns from, loaded from their checkpoints."""

from captioning.captioner import Captioner
from captioning.ensembles import check_same_input, load_captioner
from captioning.support.errors import CaptioningError
from captioning.training.lineage import taught_by


def load_teacher(captioner: Captioner) -> None:
    """Give the objective of a captioner its teacher, if it has one.

    The captioner's ``run`` then names the teacher, and the data on which it was trained.

    Where the objective says so, the vocabulary of the teacher may be the beginning of that of the
    captioner, as it is if words were added to a trained model that then teaches.

    Raises:
        CaptioningError: there is no teacher; or a checkpoint of it cannot be loaded, or has another
            vocabulary or encoder than the captioner.
    """
    objective = captioner.objective
    if objective.teachers is None:
        return
    if not objective.teachers:
        raise CaptioningError(objective.no_teacher)
    name = f"objective.teachers={','.join(objective.teachers)}"
    teacher = load_captioner(objective.teachers, backend=captioner.backend)
    check_same_input(
        captioner, teacher, name, "this run", fewer_words=objective.teacher_lacks_words
    )
    captioner.run = taught_by(captioner.run, teacher.run.get("members", [teacher.run]))
    objective.learn_from(teacher.decoder)
