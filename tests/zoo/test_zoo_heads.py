"""Fine-tuned checkpoints: their number of classes is read from the file, and folders of their classes are labelled."""

import pytest
import torch
from safetensors.torch import save_file

from snows_core.errors import SnowsError
from snows_core.zoo import experiment, load_data, sources
from snows_core.zoo.heads import classes_of, head_name, outputs_of

NETWORKS = ["timm/test_vit", "timm/test_resnet", "timm/test_byobnet", "torchvision/squeezenet1_1"]


def write(address, classes, path):
    torch.manual_seed(0)
    model = sources.build(address, classes)
    save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize("address", NETWORKS)
def test_the_number_of_classes_is_read_from_the_file(address, tmp_path):
    made = write(address, 3, tmp_path / "mine.safetensors")
    row = experiment(address)
    for given in (None, 3):
        model = row.load_model(tmp_path / "mine.safetensors", num_classes=given)
        assert outputs_of(model) == classes_of(model) == 3 and not model.training
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(SnowsError, match="num_classes: got 2; expected 3, the outputs in"):
        row.load_model(tmp_path / "mine.safetensors", num_classes=2)


def test_a_checkpoint_of_torch_save_in_a_wrapper(tmp_path):
    torch.save({"model": write("timm/test_vit", 5, tmp_path / "w").state_dict(), "epoch": 3}, tmp_path / "mine.pth")
    assert outputs_of(experiment("timm/test_vit").load_model(tmp_path / "mine.pth")) == 5


def test_one_logit_is_two_classes(tmp_path):
    write("timm/test_vit", 1, tmp_path / "mine.safetensors")
    model = experiment("timm/test_vit").load_model(tmp_path / "mine.safetensors")
    assert outputs_of(model) == 1 and classes_of(model) == 2


def test_the_last_layer_is_found_where_timm_says_nothing():
    assert head_name(sources.build("timm/test_vit")) == "head"
    assert head_name(sources.build("torchvision/squeezenet1_1")) == "classifier.1"
    assert head_name(torch.nn.ReLU()) == "" and outputs_of(torch.nn.ReLU()) is None


def test_a_number_of_classes_without_weights_is_refused():
    with pytest.raises(SnowsError, match=r"num_classes: got 2; expected weights='<path>' beside it"):
        experiment("timm/test_vit").load_model(num_classes=2)
    assert outputs_of(experiment("timm/test_vit").load_model(pretrained=False, num_classes=2)) == 2
    with pytest.raises(SnowsError, match="num_classes: got 2; expected None"):
        experiment("digits-resnet20").load_model(pretrained=False, num_classes=2)


def test_weights_of_another_architecture_are_refused_as_before(tmp_path):
    write("timm/test_vit", 2, tmp_path / "mine.safetensors")
    with pytest.raises(SnowsError, match=r"weights: got .*missing, .*unknown"):
        experiment("timm/test_resnet").load_model(tmp_path / "mine.safetensors")


def test_wordnet_folders_are_numbered_for_a_network_of_just_these(tmp_path, make_images):
    for wnid in ("n02102040", "n03888257"):
        for part in ("train", "val"):
            make_images(tmp_path / "imagenet" / part / wnid, 2)
    for name in ("imagenet", f"folder:{tmp_path / 'imagenet'}"):
        for classes, labels, count in ((2, {0, 1}, 2), (1000, {217, 701}, 1000), (None, {217, 701}, 1000)):
            bundle = load_data(name, tmp_path, image_size=32, num_classes=classes)
            assert set(bundle.test.tensors()[1].tolist()) == labels and len(bundle.classes) == count


def test_labels_that_a_network_cannot_mean_are_one_error(tmp_path, make_images):
    for name in ("cats", "dogs"):
        make_images(tmp_path / name, 5)
    row = experiment("timm/test_vit")
    with pytest.raises(SnowsError, match=r"data: got 2 classes .*expected 1000, the outputs.*weights='<path>'.*flat"):
        row.check_dense(row.load_model(pretrained=False), row.load_data(data=f"folder:{tmp_path}"))
    model = row.load_model(pretrained=False, num_classes=2)
    assert row.check_dense(model, row.load_data(data=f"folder:{tmp_path}")).images == 2
