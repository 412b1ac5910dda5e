"""The teacher of ``objective=distillation``, loaded from its checkpoints."""

from captioning.captioner import Captioner
from captioning.ensembles import check_same_input, load_captioner
from captioning.objectives import Distillation
from captioning.objectives.distillation import NO_TEACHER
from captioning.support.errors import CaptioningError


def load_teacher(captioner: Captioner) -> None:
    """Give the objective of a captioner its teacher, if it learns by distillation.

    The vocabulary of the teacher may be the beginning of that of the captioner, as it is if words
    were added to a trained model that then teaches.

    Raises:
        CaptioningError: there is no teacher; or a checkpoint of it cannot be loaded, or has another
            vocabulary or encoder than the captioner.
    """
    objective = captioner.objective
    if not isinstance(objective, Distillation):
        return
    if not objective.teachers:
        raise CaptioningError(NO_TEACHER)
    name = f"objective.teachers={','.join(objective.teachers)}"
    teacher = load_captioner(objective.teachers, backend=captioner.backend)
    check_same_input(captioner, teacher, name, "this run", fewer_words=True)
    objective.learn_from(teacher.decoder)
