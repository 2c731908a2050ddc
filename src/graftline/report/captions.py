"""What scores and figures mean, in words for their readers."""

MEANINGS = {
    "accuracy": "Share of images classified rightly.",
    "accuracy_weighted": "The same, each image counting by its weight.",
    "balanced_accuracy": "Recall averaged over the classes, so that rare ones count as much as common ones.",
    "f1_macro": "Precision and recall in one number, averaged over the classes.",
    "cost": "What an answer costs on average, by the costs that the model was given.",
    "set_coverage": "Share of the images whose set of classes holds the true one.",
    "set_size": "How many classes are in a set, on average.",
    "refused": "Share of the images that lie too far from the training images.",
    "accuracy_accepted": "Share of all other images that is classified rightly.",
    "auroc": "How often an image of a class is ranked above one of another class; guessing gives 0.5.",
    "log_loss": "Surprise at the true class, in nats; confident mistakes cost most.",
    "brier": "Squared error of the probabilities.",
    "ece": "Average gap between how sure and how right the predictions are.",
}

HEADINGS = {
    "members_and_crops": "What members and crops bring, and cost",
    "crops": "Where the crops lie",
    "confusion_matrix": "Which classes are confused",
    "roc_curves": "How well the classes separate",
    "precision_recall_curves": "What finding more would cost",
    "reliability_diagram": "Whether the probabilities can be believed",
    "coverage_curve": "What the surest answers are worth",
    "confident_mistakes": "Where the model is sure and wrong",
    "slices": "On which images it is worse",
    "confidences": "How sure it is",
    "explanations": "Where each answer was seen",
    "learning_curve": "Accuracy against the number of labels",
    "training_loss": "How the training went",
    "training_accuracy": "What the epochs brought",
}

CAPTIONS = {
    "members_and_crops": "Each point is a combination of members and crops whose answers are averaged. Those on "
    "the line are worth their time on this machine: no other combination is as accurate in as little. Intervals that "
    "overlap do not say that two are alike; the table's gains are of the same images and tell more.",
    "crops": "The first image, and what of it the network sees in each pass; its answers are averaged.",
    "confusion_matrix": "Follow a row: where do the images of that class end up? A dark blue diagonal is the goal. An "
    "orange cell is a confusion; if its mirror image across the diagonal is orange too, the two classes look alike to "
    "the model.",
    "roc_curves": "What share of a class is found, against the share of the other images falsely reported as it. The "
    "closer to the upper left corner the better. Moving the threshold moves along the curve: another trade-off costs "
    "no training.",
    "precision_recall_curves": "What share of the images reported as a class is right, as more of the class is found. "
    "It tells more than the ROC curve where a class is rare: look where the curve begins to fall.",
    "reliability_diagram": "On the dashed line, of the predictions made with 80 %, 80 % are right. Below it the model "
    "is too sure of itself, above it too modest. Thin lines are 95 % intervals. The chart “How sure "
    "it is” shows how many predictions lie in each bin.",
    "coverage_curve": "If only the images that the model is surest of were answered, and the others left to people, "
    "how many would be right? The steeper the curve falls to the right, the more it brings to leave the last ones out.",
    "confident_mistakes": "Look at these first. Often they are wrong labels, images that nobody could tell apart, or "
    "something that the training images do not show.",
    "slices": "The accuracy on images that share something: a group, how bright or sharp they are, their shape. A bar "
    "shows that on other images of the same classes. Orange: significantly worse than these, corrected for looking at "
    "all slices. More training images like these may help there.",
    "confidences": "How many images have a prediction of that probability. Few on the left: the model seldom "
    "hesitates.",
    "explanations": "A row for each image: itself, where in it the answer was seen, and the training images most like "
    "it. Where all of these are of the class that was answered, look at the label before the network.",
    "learning_curve": "Heads fitted to ever more of the training images, and scored on validation images. Beyond the "
    "dotted line the curve is carried on to labels that are not there yet.",
    "training_loss": "The weights of that epoch of the second half are kept whose validation loss is lowest once its "
    "probabilities are calibrated. Where the plain one rises and the calibrated one does not, the network only becomes "
    "too sure of itself; where both rise, it learns its images by heart.",
    "training_accuracy": "Share of the validation images that is classified rightly. It jumps more than the loss, "
    "which decides.",
}
