"""Reading numpy files: arrays, or an error with the name of the file."""

import numpy as np
import pytest

from mmextra.engine.arrays import read_arrays


def test_arrays_are_read_by_name(tmp_path):
    np.savez(tmp_path / 'a.npz', names=np.array(['ü']), rows=np.eye(2), more=1)
    names, rows = read_arrays(tmp_path / 'a.npz', 'names', 'rows')
    assert names.tolist() == ['ü'] and (rows == np.eye(2)).all()
    np.save(tmp_path / 'b.npy', np.arange(3))
    (numbers,) = read_arrays(str(tmp_path / 'b.npy'))
    assert numbers.tolist() == [0, 1, 2]


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / 'a'
    for save, names, reason in (
        (lambda file: np.save(file, np.eye(2)), ('rows',), 'expected .npz with rows'),
        (lambda file: np.savez(file, rows=np.eye(2)), (), 'expected .npy'),
        (lambda file: np.savez(file, rows=np.eye(2)), ('names',), 'names'),
        (lambda file: np.save(file, np.array([np.inf])), (), 'not finite'),
        (lambda file: np.save(file, np.array([None])), (), 'allow_pickle'),
        (lambda file: np.save(file, np.array(1 + 1j)), (), 'it holds complex128'),
        (lambda file: file.write(b''), (), 'No data'),
    ):
        with path.open('wb') as file:
            save(file)
        with pytest.raises(ValueError, match=f'{path} cannot be read: .*{reason}'):
            read_arrays(path, *names)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / 'nowhere.npy')
