//! Interfaces and routes, in a network namespace of the test's own. Needs root, cgroup2 and `ip` (iproute2).

mod support;

use snp_agent::proto::grpc::*;
use snp_agent::proto::types::{ArpNeighbor, Interface, IpAddress, Route};
use support::Agent;

fn v4(address: &str, mask: &str) -> IpAddress {
    IpAddress {
        family: 0,
        address: address.into(),
        mask: mask.into(),
    }
}

#[test]
fn an_interface_is_found_by_its_address_named_and_routed() {
    let agent = Agent::start_alone();
    agent.ip("link add veth9 address 02:00:00:00:00:09 type veth peer name far9");
    let wanted = Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        ip_addresses: vec![
            v4("10.9.0.2", "24"),
            IpAddress {
                family: 1,
                address: "fd00::2".into(),
                mask: "64".into(),
            },
        ],
        mtu: 1400,
        hw_addr: "02:00:00:00:00:09".into(),
        ..Interface::default()
    };
    let update = UpdateInterfaceRequest {
        interface: Some(wanted.clone()),
    };
    agent.call::<Interface>("UpdateInterface", &update);
    // A second time it is already there.
    agent.call::<Interface>("UpdateInterface", &update);
    agent.ip("link set far9 up");
    let listed: Interfaces = agent.call("ListInterfaces", &ListInterfacesRequest::default());
    let eth0 = listed
        .interfaces
        .iter()
        .find(|interface| interface.name == "eth0")
        .unwrap();
    assert_eq!(eth0.mtu, 1400);
    assert!(eth0.ip_addresses.contains(&v4("10.9.0.2", "24")), "{eth0:?}");

    let route = |dest: &str, gateway: &str| Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: "eth0".into(),
        ..Route::default()
    };
    let routes = vec![
        route("", "10.9.7.1"),
        Route {
            scope: 253,
            ..route("10.9.7.1/32", "")
        },
        route("10.8.0.0/16", "10.9.0.1"),
    ];
    let update = UpdateRoutesRequest {
        routes: Some(Routes { routes }),
    };
    agent.call::<Routes>("UpdateRoutes", &update);
    let now: Routes = agent.call("UpdateRoutes", &update);
    let shown: Vec<String> = now
        .routes
        .iter()
        .map(|route| format!("{}>{}", route.dest, route.gateway))
        .collect();
    for expected in [">10.9.7.1", "10.9.7.1/32>", "10.8.0.0/16>10.9.0.1", "10.9.0.0/24>"] {
        assert!(shown.iter().any(|shown| shown == expected), "{shown:?}");
    }

    // One more address, another MTU: what was there is left alone, and so are the routes that lead through it.
    let mut changed = wanted.clone();
    changed.mtu = 1300;
    changed.ip_addresses.push(v4("10.7.0.2", "16"));
    changed.ip_addresses.retain(|address| address.address != "fd00::2");
    let update = UpdateInterfaceRequest {
        interface: Some(changed),
    };
    agent.call::<Interface>("UpdateInterface", &update);
    let addresses = agent.ip("-o addr show dev eth0");
    assert!(
        addresses.contains("10.7.0.2/16") && !addresses.contains("fd00::2"),
        "{addresses}"
    );
    let kept = agent.ip("route show dev eth0");
    assert!(kept.contains("10.8.0.0/16 via 10.9.0.1"), "{kept}");

    // A route that comes by an advertisement belongs to the kernel; one that nobody wants any more goes.
    agent.ip("-6 route add fd01::/64 dev eth0 proto ra");
    let fewer = UpdateRoutesRequest {
        routes: Some(Routes {
            routes: vec![route("10.8.0.0/16", "10.9.0.3")],
        }),
    };
    agent.call::<Routes>("UpdateRoutes", &fewer);
    let kept = agent.ip("route show dev eth0");
    assert!(
        kept.contains("10.8.0.0/16 via 10.9.0.3") && !kept.contains("default"),
        "{kept}"
    );
    assert!(agent.ip("-6 route show dev eth0").contains("fd01::/64 proto ra"));

    let neighbour = ArpNeighbor {
        to_ip_address: Some(v4("10.9.0.1", "")),
        device: "eth0".into(),
        lladdr: "02:00:00:00:00:01".into(),
        ..ArpNeighbor::default()
    };
    let neighbours = AddArpNeighborsRequest {
        neighbors: Some(ArpNeighbors {
            arp_neighbors: vec![neighbour],
        }),
    };
    agent.call::<()>("AddARPNeighbors", &neighbours);
    assert!(agent
        .ip("neigh show dev eth0")
        .contains("10.9.0.1 lladdr 02:00:00:00:00:01 PERMANENT"));
}

#[test]
fn wrong_addresses_are_named() {
    let agent = Agent::start_alone();
    let wanted = Interface {
        hw_addr: "nonsense".into(),
        ..Interface::default()
    };
    let (code, text) = agent.refused(
        "UpdateInterface",
        &UpdateInterfaceRequest {
            interface: Some(wanted),
        },
    );
    assert!(code == 3 && text.contains("nonsense"), "{text}");
    let route = Route {
        device: "eth7".into(),
        ..Route::default()
    };
    let update = UpdateRoutesRequest {
        routes: Some(Routes { routes: vec![route] }),
    };
    let (_, text) = agent.refused("UpdateRoutes", &update);
    assert!(text.contains("eth7"), "{text}");
}
