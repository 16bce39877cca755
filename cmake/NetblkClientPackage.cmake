# SPDX-License-Identifier: GPL-2.0-only
# The client library as others use it: `cmake --install BUILD` puts down one archive, its headers, a CMake package
# (find_package(netblk_client) gives netblk::client) and a pkg-config file (netblk-client). docs/client-library.md
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(rooms base coro io io_uring io_epoll block proto_netblk proto_nbd transport client)
set(NETBLK_CLIENT_HEADERS
    client/netblk2_client.h client/blocking.h client/ask2.h client/open_auto.h client/nbd_client.h client/nbd_handshake.h transport/tcp.h transport/tcp_dialer.h
    transport/unix_dialer.h
    io/uring/uring_backend.h io/epoll/epoll_backend.h base/log.h base/id.h)
# Its archive needs what the rooms need.
set(NETBLK_CLIENT_PACKAGES liburing spdlog libisal liblz4 libzstd)

add_library(netblk_client STATIC)
set_target_properties(netblk_client PROPERTIES LINKER_LANGUAGE CXX)
foreach(room ${rooms})
  get_target_property(type room_${room} TYPE)
  if(NOT type STREQUAL "INTERFACE_LIBRARY")
    target_sources(netblk_client PRIVATE $<TARGET_OBJECTS:room_${room}>)
  endif()
endforeach()

# The public headers and all that they include, under netblk/: "base/id.h" becomes <netblk/base/id.h>, so that nothing
# of ours stands in an include folder under a common name.
set(installed ${PROJECT_BINARY_DIR}/include/installed)
file(REMOVE_RECURSE ${installed})
set(wanted ${NETBLK_CLIENT_HEADERS})
set(done "")
while(wanted)
  list(POP_FRONT wanted header)
  if(header IN_LIST done)
    continue()
  endif()
  list(APPEND done ${header})
  set(from ${PROJECT_SOURCE_DIR}/src/${header})
  if(header MATCHES "^protocol/")
    set(from ${PROJECT_SOURCE_DIR}/${header})
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${from})
  file(READ ${from} text)
  string(REGEX MATCHALL "#include \"[^\"]+\"" includes "${text}")
  foreach(include ${includes})
    string(REGEX REPLACE "#include \"([^\"]+)\"" "\\1" include "${include}")
    list(APPEND wanted ${include})
  endforeach()
  string(REGEX REPLACE "#include \"([^\"]+)\"" "#include <netblk/\\1>" text "${text}")
  file(WRITE ${installed}/netblk/${header} "${text}")
endwhile()

file(RELATIVE_PATH NETBLK_CLIENT_PC_UP /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
string(REPLACE ";" " " NETBLK_CLIENT_PC_PACKAGES "${NETBLK_CLIENT_PACKAGES}")
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/netblk_client-config.cmake.in
                              ${PROJECT_BINARY_DIR}/netblk_client-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/netblk_client
                              PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/netblk_client-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
configure_file(${PROJECT_SOURCE_DIR}/cmake/netblk-client.pc.in ${PROJECT_BINARY_DIR}/netblk-client.pc @ONLY)

install(TARGETS netblk_client ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT client)
install(DIRECTORY ${installed}/netblk DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT client)
install(FILES ${PROJECT_BINARY_DIR}/netblk_client-config.cmake ${PROJECT_BINARY_DIR}/netblk_client-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/netblk_client COMPONENT client)
install(FILES ${PROJECT_BINARY_DIR}/netblk-client.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT client)
