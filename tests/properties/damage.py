"""Ways in which a file goes bad."""

from hypothesis import strategies as st


def damaged(content: bytes):
    """A strategy of what may become of the bytes of a file: cut, flipped, overwritten, emptied, left as they are."""
    last = max(len(content) - 1, 0)
    cut = st.integers(0, last).map(lambda n: content[:n])

    def flip(place_and_bit):
        place, bit = place_and_bit
        return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]

    def overwrite(place_and_bytes):
        place, new = place_and_bytes
        return content[:place] + new + content[place + len(new) :]

    return st.one_of(
        cut,
        st.tuples(st.integers(0, last), st.integers(0, 7)).map(flip),
        st.tuples(st.integers(0, last), st.binary(min_size=1, max_size=12)).map(overwrite),
        st.sampled_from([b'', b'\0' * 64, b'text', b'\xff\xfe\xfa', content]),
    )


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(),
        st.sampled_from(['', 'ü', '車', 'x' * 300, 'a.jpg', '../a.jpg']),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(['id', 'bbox', 'x']), inner)
    ),
    max_leaves=4,
)


@st.composite
def spoiled(draw, content):
    """A strategy of what may become of parsed JSON: entries that are absent, doubled or of another kind."""
    content = draw(st.just(content)) if not isinstance(content, (dict, list)) else content
    for _ in range(draw(st.integers(1, 3))):
        content = _spoil(draw, content)
    return content


def _spoil(draw, node):
    if not isinstance(node, (dict, list)) or not node or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    place = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    what = draw(st.sampled_from(['within', 'within', 'within', 'absent', 'doubled']))
    node = dict(node) if isinstance(node, dict) else list(node)
    if what == 'within':
        node[place] = _spoil(draw, node[place])
    elif what == 'absent':
        del node[place]
    elif isinstance(node, list):
        node.append(node[place])
    return node
