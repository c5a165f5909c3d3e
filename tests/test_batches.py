import torch

from air.training.batches import EpochSampler

CPU = torch.device("cpu")


def epoch(sampler, number):
    steps = len(sampler.places) // sampler.batch_size
    return [sampler.indices(step) for step in range(number * steps, (number + 1) * steps)]


def test_each_epoch_has_every_scene_once_in_an_order_of_its_own():
    sampler = EpochSampler(12, 4, 5, CPU)
    first, second = (torch.cat(epoch(sampler, number)) for number in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12)) and not torch.equal(first, second)
    assert torch.equal(EpochSampler(12, 4, 5, CPU).indices(4), second[4:8])  # the step alone decides
    assert not torch.equal(torch.cat(epoch(EpochSampler(12, 4, 6, CPU), 0)), first)


def test_pictures_come_as_often_as_they_have_room_for_crops():
    sampler = EpochSampler(3, 2, 0, CPU, torch.tensor([1, 4, 3]))
    assert torch.cat(epoch(sampler, 1)).bincount().tolist() == [1, 4, 3]
    sampler = EpochSampler(2, 7, 0, CPU, torch.tensor([1, 2]))  # a batch needs three times as many
    assert sampler.places.bincount().tolist() == [3, 6] and len(sampler.indices(0)) == 7
    assert EpochSampler(1, 64, 0, CPU, torch.tensor([1])).indices(3).tolist() == [0] * 64
