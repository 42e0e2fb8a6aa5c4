//! Grouping of addresses for limits by address.

use std::net::{IpAddr, Ipv6Addr};

/// The group that an address belongs to for limits by address. An IPv4 address is its own group, also if it is written
/// as IPv6 (RFC 4291 section 2.5.5.2). An IPv6 address belongs to its /64, the size that one subscriber is assigned
/// (RFC 6177), so no subscriber has 2^64 times each limit.
pub fn address_group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_group_and_mapped_addresses_are_ipv4() {
        let group = |text: &str| address_group(text.parse().unwrap()).to_string();
        assert_eq!(group("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(group("2001:db8:1:2:ffff::1"), group("2001:db8:1:2::2"));
        assert_ne!(group("2001:db8:1:3::1"), group("2001:db8:1:2::1"));
        assert_eq!(group("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(group("10.0.0.1"), "10.0.0.1");
    }
}
