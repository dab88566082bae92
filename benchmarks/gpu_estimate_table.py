"""What estimates cannot read from the machine code: how often the slowest thread passes each loop.

Whoever changes a kernel edits this file: the phase whose device function was changed, or a new one
for a new function. Sizes are those of the published trainings on MNIST: LR B = 600; MLP B = 20, 500
hidden units; LeNet B = 500, 20 and 50 maps, 500 hidden units. A block has 8 rows of 16 lanes, four
warps, so one warp on each of a multiprocessor's four schedulers; where 264 blocks have work, two.

The kernel that a published training takes has the model's name. One that serves what it cannot is
the plain one, and has the model's name with _plain behind it.

A kernel whose phases are no functions, but straight code between barriers, has by_barrier=True and
a Phase with function="" for each stretch, in order; the last one of a minibatch, behind the last
barrier, belongs to the first. Loops in a stretch are passed as its ``passes`` say. So are kernels
described that the compiler has made one of all their functions, mixing their instructions.
"""

from typing import NamedTuple


class Phase(NamedTuple):
    """A part of a minibatch."""

    name: str  # that of the GPU day's profile, where it has one
    function: str  # the device function that the kernel calls; "" is what no other phase has
    # {variable of a loop, or function.variable: passes of the slowest thread, or a tuple of them,
    # one for each line that calls the function}
    passes: dict
    warps: int = 1  # on the busiest scheduler
    l2_share: float = 1  # of passes, in how many a load waits for the L2 cache; 0: always in L1
    # What all multiprocessors together move through L2: after a wait all do so at once, so the
    # time it takes is added to that of the instructions.
    l2_megabytes: float = 0
    # See Kernel; goes before what stands there. A tuple of them is for schedulers whose warps do
    # different things; the slowest counts.
    taken: dict = {}  # noqa: RUF012


class Kernel(NamedTuple):
    """A kernel that trains many minibatches."""

    name: str  # by which it is listed, asked for and accepted
    model: str  # one of the configuration's
    blocks: int  # of its grid
    minibatches: int  # of an epoch
    grid_waits: int  # of a minibatch
    phases: tuple
    settings: dict = {}  # noqa: RUF012, that differ from the published ones
    speed: str = "cuda"  # what the GPU day's speed of the model is called with these settings
    function: str = "_train"
    # Commit of the GPU day whose speeds are this kernel's, the one that a training took then; of a
    # day at another commit they are not.
    measured_at: str = ""
    draft: str = ""  # of benchmarks/results/gpu_designs.json, which was measured in its place
    loop: str = "step"  # variable of its loop over minibatches
    by_barrier: bool = False  # phases are what lies between barriers, in order
    # {condition of an if, or function: whether it is taken, or a slice of a scheduler's warps that
    # take it}. Others take the else branch. Of an if that is not named all take both branches.
    taken: dict = {}  # noqa: RUF012
    unrolled: dict = {}  # noqa: RUF012, {variable of a loop: passes of the source in a compiled one}


FIRST_DAY = "91f85115429e"  # when there were the plain kernels alone
FAST_DAY = "624f859c06fe"  # when those that are fast were measured

NO_LP = {"descent.lp > like(descent.lp, 0)": False}
NO_PENALTY = {**NO_LP, "has_penalty(descent)": False}
TANH = {"sigmoid": False}

# How often loads wait for L2 follows from how they lie: a sector, which is what a miss brings, has
# 8 numbers, two passes of a loop unrolled four times. After a wait of the grid L1 is empty.
HALF = 0.5  # of the passes bring a new sector: numbers that lie side by side

# A block has seven warps, so a scheduler two at most; the one of warps 0 and 4 has most to do. Each
# block reads all weights, 31 kB, and its images; it writes a row of partials as long, and then all
# rows are read.
FIRST_WARP = slice(0, 1)
LOGISTIC_REGRESSION = Kernel(
    name="logistic_regression",
    model="logistic_regression",
    blocks=100,
    minibatches=83,
    grid_waits=2,
    function="_train_fast",
    by_barrier=True,
    measured_at=FAST_DAY,
    draft="samples split over 100 blocks, two waits of the grid a minibatch",
    taken={
        "is_penalised": False,
        "is_penalised and column < sizes.classes * sizes.pixels": False,
        "is_there": True,
        "column == sizes.columns - ONE": False,  # a weight, not the cost
    },
    phases=(
        Phase("products", "", {}, warps=2, l2_megabytes=3.6),
        Phase(
            "logits",
            "",
            {},
            warps=2,
            taken={"thread < sizes.images * sizes.classes": FIRST_WARP},
        ),
        Phase("loss", "", {}, warps=2, taken={"thread < sizes.images": FIRST_WARP}),
        Phase(
            "gradient",
            "",
            {},
            warps=2,
            l2_megabytes=3.1,
            taken={"thread <= sizes.classes": FIRST_WARP},
        ),
        Phase("sum over blocks", "", {}, warps=2, l2_megabytes=3.1),
        Phase("update", "", {}, warps=2, taken={"team == ZERO and is_there": FIRST_WARP}),
    ),
)

PLAIN_LOGISTIC_REGRESSION = Kernel(
    name="logistic_regression_plain",
    model="logistic_regression",
    measured_at=FIRST_DAY,
    blocks=99,
    minibatches=83,
    grid_waits=3,
    taken=NO_PENALTY,
    phases=(
        Phase("forward", "_forward_phase", {"i": 1, "c": 1, "d": 784}),
        Phase("penalty", "penalty_phase", {"d": 1, "c": 10}),
        Phase("loss", "loss_phase", {"i": 1, "c": 10}, l2_share=HALF),
        Phase(
            "update",
            "_update_phase",
            {"d": 1, "c": 1, "i": 600},
            taken={"d < n_features": True},
        ),
        Phase("cost, by one thread", "cost_phase", {"i": (600, 784)}, l2_share=HALF),
        Phase("between phases", "", {}),
    ),
)

# A block has eight warps, so a scheduler two. The last warp has no pixels and does what others do
# not, so its scheduler is of another kind.
LAST_WARP, OTHER_WARP = slice(1, 2), slice(0, 1)
MLP = Kernel(
    name="mlp",
    model="mlp",
    blocks=125,
    minibatches=2500,
    grid_waits=2,
    function="_train_fast",
    by_barrier=True,
    measured_at=FAST_DAY,
    draft="4 hidden units a block in registers, two waits of the grid a minibatch",
    taken={"is_l2_alone(descent)": True},
    phases=(
        Phase(
            "update, and forward of the next",
            "",
            {"image": 20},
            warps=2,
            l2_share=0,  # what is loaded is for the next minibatch
            taken=(
                {"_update_shared": False},
                {"_update_shared": LAST_WARP, "_add_gradient": OTHER_WARP},
            ),
        ),
        Phase("activate", "", {}, warps=2),
        Phase("share", "", {}, warps=2),
        Phase("sum logits", "", {}, warps=2, taken={"_sum_logits_of_minibatch": OTHER_WARP}),
        Phase(
            "loss, penalties",
            "",
            {},
            warps=2,
            taken=({"_loss": False}, {"_loss": LAST_WARP, "_penalise": OTHER_WARP}),
        ),
        Phase(
            "hidden errors, costs",
            "",
            {},
            warps=2,
            taken={"_hidden_errors": OTHER_WARP, "_write_costs": LAST_WARP},
        ),
    ),
)

LAST_LAYER = {"activation != NO_ACTIVATION": False}
PLAIN_MLP = Kernel(
    name="mlp_plain",
    model="mlp",
    blocks=264,
    minibatches=2500,
    grid_waits=5,
    taken={**NO_LP, **TANH, "d == n_in": False},
    phases=(
        # There are 33,792 threads for 10,000 hidden units, and for 392,500 parameters.
        Phase("forward 1", "_first_forward_phase", {"task": 1, "k": 196, "left": 0}),
        Phase(
            "forward 2", "_next_forward_phase", {"task": 1, "k": 125, "left": 0}, taken=LAST_LAYER
        ),
        Phase("penalty 1", "_penalty_phase", {"d": 1, "u": 500}, l2_share=HALF),
        Phase("penalty 2", "_penalty_phase", {"d": 1, "u": 10}),
        Phase("loss", "loss_phase", {"i": 1, "c": 10}, l2_share=HALF),
        Phase("error 1", "_error_phase", {"task": 1, "c": 10}, l2_share=HALF),
        Phase(
            "update 1",
            "_update_phase",
            {"task": 12, "i": 20},
            warps=2,
            l2_megabytes=7,
            taken={"number == 0": True},
        ),
        Phase(
            "update 2",
            "_update_phase",
            {"task": 1, "i": 20},
            taken={"number == 0": False},
        ),
        Phase("cost, by one thread", "cost_phase", {"i": (20, 1284)}, l2_share=HALF),
        Phase("between phases", "", {"number": 2}),
    ),
)

# A block has ten warps, so a scheduler three at most, and one of 125 groups of images. Of the tiles
# of the hidden layer the slowest block has one forward, and two of each kind backward.
# A square's error goes to one place of four, and the code for each is there: here one warp takes
# all four and the others none, a third more than three warps with one each.
ONE_OF_FOUR = {"places & ONE << TWO * y + x": slice(0, 1)}
LENET = Kernel(
    name="lenet",
    model="lenet",
    blocks=132,
    minibatches=100,
    grid_waits=6,
    function="_train_fast",
    measured_at=FAST_DAY,
    draft="one kernel, images split over 132 blocks, six waits of the grid a minibatch",
    loop="state",
    taken={**NO_LP, "kernels.has_penalty(descent)": False, "has_penalty(descent)": False},
    phases=(
        Phase(
            "convolution 1",
            "conv1_phase",
            {
                "load_pixels.i": 1,
                "copy_words.i": 1,
                "image": 4,
                "task": 1,
                "_": 5,
                "_keep_h1.i": 9,
            },
            warps=3,
            l2_share=0,
        ),
        Phase("convolution 2", "conv2_phase", {"k": 20, "_": 5}, warps=3, l2_share=0),
        Phase(
            "hidden layer",
            "hidden_phase",
            {"tile": 1, "_add_all_terms.i": 25, "_": 2, "i": 7},
            warps=3,
            l2_share=HALF,
            l2_megabytes=21,
        ),
        Phase("last layer", "logits_phase", {"copy_words.i": 1, "i": 16}, warps=3),
        Phase("loss, hidden errors", "loss_phase", {"unit": 2}, warps=3),
        Phase(
            "last weights, biases",
            "last_update_phase",
            {"quad": 1, "_sum_products.i": 8, "_sum_rows.i": 8},
            warps=3,
        ),
        Phase(
            "hidden layer backward",
            "hidden_backward_phase",
            {"tile": 2, "_add_all_terms.i": 16, "_": 2, "_finish_error_tile.i": 1, "i": 7},
            warps=3,
            l2_share=HALF,
            l2_megabytes=42,
        ),
        Phase(  # its loop over four images is counted with the groups: so each four times
            "filters 2",
            "conv2_gradient_phase",
            {"copy_words.i": 4, "copy.i": 4, "square": 64},
            warps=3,
            l2_share=0,
            taken=ONE_OF_FOUR,
        ),
        Phase(
            "errors below 2",
            "conv2_error_phase",
            {
                "pair": 2,
                "copy_words.i": 1,
                "copy.i": 1,
                "bundle": 10,
                "_": 5,
                "_add_strips.i": 6,
                "row": 4,
            },
            warps=3,
            l2_share=0,
            taken=ONE_OF_FOUR,
        ),
        Phase(
            "filters 1",
            "conv1_gradient_phase",
            {
                "load_pixels.i": 1,
                "_mark_dark.i": 2,
                "y": 6,
                "x": 6,
                "square": 12,
                "places": 1,
                "later": 15,
                "i": 2,
            },
            warps=3,
            l2_share=0,
        ),
        Phase(
            "sums, update", "conv_update_phase", {"i": 1, "_": 5, "j": 0}, warps=3, l2_megabytes=13
        ),
        Phase("between phases", "", {"GROUP_IMAGES": 1, "image": 4, "chunk": 0, "term": 0}),
    ),
)

# Of ten warps eight multiply on tensor cores: two of each scheduler, which has half as many more
# where all load. What is loaded is so counted half as often again.
TENSOR_PHASES = {
    "convolution 2": Phase(
        "convolution 2",
        "conv2_tensor_phase",
        {
            "_clear.i": 1,
            "pair": 2,
            "copy_words.i": 2.5,
            "task": 1,
            "_": 22,
            "_keep_places.i": 1,
        },
        warps=2,
        l2_share=0,
        l2_megabytes=18,
    ),
    "filters 2": Phase(
        "filters 2",
        "conv2_gradient_phase",
        {"image": 4, "copy_words.i": 1.5, "_load_errors.i": 1.5, "row": 8},
        warps=2,
        l2_share=0,
    ),
    "errors below 2": Phase(  # a scheduler's two warps have 2 tasks and 1, of either part
        "errors below 2",
        "conv2_error_tensor_phase",
        {
            "_clear.i": 34,
            "pair": 2,
            "_load_errors.i": 1.5,
            "task": 1.5,
            "step": 4,
            "_add_halves.i": 3,
        },
        warps=2,
        l2_share=0,
        l2_megabytes=20,
        taken={"task & ONE == ZERO": True},
    ),
}
for phase in LENET.phases:
    if phase.name == "hidden layer":
        rounds = {"_add_all_terms_tf32.i": 26}
        TENSOR_PHASES[phase.name] = phase._replace(passes={**phase.passes, **rounds})
    if phase.name == "hidden layer backward":  # 104 wide tiles, one of a block
        passes = {"tile": 0.5, "_add_all_terms.i": 32, "i": 4, "_finish_gradient_tile.i": (4, 26)}
        TENSOR_PHASES[phase.name] = phase._replace(passes=passes, l2_megabytes=41)

LENET_TF32 = LENET._replace(
    name="lenet_tf32",
    settings={"arithmetic": "tf32"},
    speed="cuda TF32",
    draft="",
    phases=tuple(TENSOR_PHASES.get(phase.name, phase) for phase in LENET.phases),
)

# 264 blocks hold 2,112 rows of threads, so the slowest has 5 of 10,000 images times 20 maps, and 12
# of 25,000 times 50.
PLAIN_LENET = Kernel(
    name="lenet_plain",
    model="lenet",
    measured_at=FIRST_DAY,
    blocks=264,
    minibatches=100,
    grid_waits=13,
    taken={**NO_PENALTY, **TANH, "d < n_in": True},
    phases=(
        Phase("PENALTY of layer 1", "_penalty_phase", {"r": 1, "w": 25}, l2_share=HALF),
        Phase("PENALTY of layer 2", "_penalty_phase", {"r": 1, "w": 500}, l2_share=HALF),
        Phase("PENALTY of layer 3", "_penalty_phase", {"r": 1, "w": 500}, l2_share=HALF),
        Phase("PENALTY of layer 4", "_penalty_phase", {"r": 1, "w": 10}, l2_share=HALF),
        Phase("LOAD of layer 1", "_load_phase", {"i": 1, "d": 49}),
        Phase(
            "CONV_FORWARD of layer 1",
            "_conv_forward_phase",
            {"image_map": 5, "square": 9, "k": 4, "tap": 25},
            warps=2,
            l2_share=0,  # an image and the filters fit L1
        ),
        Phase(
            "CONV_FORWARD of layer 2",
            "_conv_forward_phase",
            {"image_map": 12, "square": 1, "k": 4, "tap": 500},
            warps=2,
            l2_share=1 / 4,  # four pixels of a square have nearly the same patch
        ),
        Phase("DENSE_FORWARD of layer 1", "_dense_forward_phase", {"i": 1, "u": 32, "d": 800}),
        Phase(
            "DENSE_FORWARD of layer 2",
            "_dense_forward_phase",
            {"i": 1, "u": 1, "d": 500},
            taken={"is_hidden": False},
        ),
        Phase("LOSS of layer 1", "_loss_phase", {"i": 1, "c": 10}, l2_share=HALF),
        Phase(
            "DENSE_ERROR of layer 2",
            "_dense_error_phase",
            {"i": 1, "d": 32, "u": 10},
            l2_share=HALF,
        ),
        Phase(
            "DENSE_ERROR of layer 1",
            "_dense_error_phase",
            {"i": 1, "d": 50, "u": 500},
            l2_share=HALF,
        ),
        Phase(
            "UNPOOL of layer 2",
            "_unpool_phase",
            {"image_map": 12, "square": 1, "k": 4},
            warps=2,
        ),
        Phase(
            "CONV_GRADIENT of layer 2",  # 16 images of a chunk
            "_conv_gradient_phase",
            {"chunk_map": 1, "tap": 32, "i": 16, "k": 64, "_bias_gradient.k": 16},
            warps=2,
            l2_share=HALF,
        ),
        Phase(
            "CONV_ERROR of layer 2",  # 12 x 12 pixels, in 5 x 5 patches of 3.3 x 3.3 on average
            "_conv_error_phase",
            {"image_map": 5, "r": 12, "c": 1, "m": 50, "q": 3.33, "s": 5},
            warps=2,
            l2_share=0,
        ),
        Phase(
            "UNPOOL of layer 1",
            "_unpool_phase",
            {"image_map": 5, "square": 9, "k": 4},
            warps=2,
        ),
        Phase(
            "CONV_GRADIENT of layer 1",
            "_conv_gradient_phase",
            {"chunk_map": 1, "tap": 2, "i": 16, "k": 576, "_bias_gradient.k": 144},
            l2_share=HALF,
        ),
        Phase("COST of layer 1", "cost_phase", {"i": (500, 1370)}, l2_share=HALF),
        Phase("CONV_UPDATE of layer 1", "_conv_update_phase", {"m": 1, "column": 2}),
        Phase("CONV_UPDATE of layer 2", "_conv_update_phase", {"m": 1, "column": 32}),
        Phase("DENSE_UPDATE of layer 1", "_dense_update_phase", {"d": 1, "u": 32, "i": 500}),
        Phase("DENSE_UPDATE of layer 2", "_dense_update_phase", {"d": 1, "u": 1, "i": 500}),
        Phase("between phases", "", {"k": 22}, l2_share=0),
    ),
)

KERNELS = (
    *(LOGISTIC_REGRESSION, PLAIN_LOGISTIC_REGRESSION),
    *(MLP, PLAIN_MLP),
    *(LENET, LENET_TF32, PLAIN_LENET),
)
