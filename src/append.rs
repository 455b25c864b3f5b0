//! Appending few octets to a buffer, without musl's `memcpy`.

/// Appends the octets.
///
/// musl's `memcpy` goes octet by octet at both ends of what is not aligned: a quarter of a publisher's time
/// with messages of 64 octets (measured). Of lengths that are known to it, the compiler makes moves.
#[inline(always)]
pub(crate) fn append(out: &mut Vec<u8>, octets: &[u8]) {
    if cfg!(target_env = "musl") && octets.len() <= SHORT {
        out.reserve(octets.len());
        let (chunks, rest) = octets.as_chunks::<128>();
        chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
        let (chunks, rest) = rest.as_chunks::<8>();
        chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
        let (chunks, rest) = rest.as_chunks::<4>();
        chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
        let (chunks, rest) = rest.as_chunks::<2>();
        chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
        out.extend(rest.first());
    } else {
        out.extend_from_slice(octets);
    }
}

/// Up to so many octets [`append`] does itself.
const SHORT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_octets_are_appended_whatever_their_number() {
        let octets: Vec<u8> = (0..SHORT + 200).map(|n| n as u8).collect();
        for len in (0..300).chain(SHORT - 2..SHORT + 200) {
            let mut out = b"before".to_vec();
            append(&mut out, &octets[..len]);
            assert_eq!(out, [b"before", &octets[..len]].concat());
        }
    }
}
